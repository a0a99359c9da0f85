"""Folder layouts, invalid data sets, and the fingerprint."""

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from lesionseg.data.index import DatasetIndex
from lesionseg.data.layouts import LAYOUTS
from lesionseg.data.pairs import IMAGE_SUFFIXES, MASK_SUFFIXES, list_images
from lesionseg.errors import InputError


def put(root, *names, content=b"not opened"):
    """Write files, which an index never opens."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def write_csv(root, text, name="manifest.csv"):
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return root / name


OWN_NAME = "names must be unique: rename or remove all but one"


def listed(index):
    return [
        (r.name, r.image.relative_to(index.root).as_posix(), r.mask.relative_to(index.root).as_posix(), r.group, r.split)  # noqa: E501
        for r in index.records
    ]  # fmt: skip


def refusal(root, layout="auto"):
    with pytest.raises(InputError) as caught:
        DatasetIndex.read(root, layout)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- valid data sets -----------------------------------------------------------------------------


def test_images_and_masks(tmp_path):
    put(tmp_path, "images/b.jpg", "images/a.png", "masks/a.png", "masks/b_mask.bmp")
    index = DatasetIndex.read(tmp_path)
    assert index.layout == "folders"
    assert index.root == tmp_path
    assert listed(index) == [
        ("a", "images/a.png", "masks/a.png", "a", None),
        ("b", "images/b.jpg", "masks/b_mask.bmp", "b", None),
    ]


def test_images_and_masks_below_train_val_and_test(tmp_path):
    for split, name in (("Train", "x"), ("val", "y"), ("TEST", "z")):
        put(tmp_path, f"{split}/Images/{name}.jpg", f"{split}/MASKS/{name}.png")
    index = DatasetIndex.read(tmp_path)
    assert [(r.name, r.split) for r in index.records] == [("x", "train"), ("y", "val"), ("z", "test")]  # noqa: E501  # fmt: skip


def test_isic_with_training_images_only_has_no_official_split(tmp_path):
    put(
        tmp_path,
        "ISIC2018_Task1-2_Training_Input/ISIC_0000001.jpg",
        "ISIC2018_Task1-2_Training_Input/ATTRIBUTION.txt",
        "ISIC2018_Task1-2_Training_Input/LICENSE.txt",
        "ISIC2018_Task1_Training_GroundTruth/ISIC_0000001_segmentation.png",
    )
    index = DatasetIndex.read(tmp_path)
    assert index.layout == "isic2018"
    assert listed(index) == [
        (
            "ISIC_0000001",
            "ISIC2018_Task1-2_Training_Input/ISIC_0000001.jpg",
            "ISIC2018_Task1_Training_GroundTruth/ISIC_0000001_segmentation.png",
            "ISIC_0000001",
            None,
        )
    ]


def test_isic_with_several_parts_has_an_official_split(tmp_path):
    for number, word in enumerate(("Training", "Validation", "Test")):
        put(
            tmp_path,
            f"ISIC2018_Task1-2_{word}_Input/ISIC_{number}.jpg",
            f"ISIC2018_Task1_{word}_GroundTruth/ISIC_{number}_segmentation.png",
        )
    index = DatasetIndex.read(tmp_path)
    assert [r.split for r in index.records] == ["train", "val", "test"]


@pytest.mark.parametrize("base", [".", "PH2 Dataset images"])
def test_ph2(tmp_path, base):
    for case in ("IMD010", "IMD002"):
        put(
            tmp_path / base / case,
            f"{case}_Dermoscopic_Image/{case}.bmp",
            f"{case}_lesion/{case}_lesion.bmp",
            f"{case}_roi/{case}_R1_Label4.bmp",
        )
    put(tmp_path, "PH2_dataset.xlsx")
    index = DatasetIndex.read(tmp_path)
    assert index.layout == "ph2"
    assert [(r.name, r.mask.name) for r in index.records] == [
        ("IMD002", "IMD002_lesion.bmp"),
        ("IMD010", "IMD010_lesion.bmp"),
    ]


MANIFEST = "image,mask,group,split\npics/b.jpg,m/b.png,p1,train\npics/a.jpg,m/a.png,p2, Test \n"


@pytest.mark.parametrize("given", ["the folder", "the file"])
def test_a_manifest(tmp_path, given):
    put(tmp_path, "pics/a.jpg", "pics/b.jpg", "m/a.png", "m/b.png")
    path = write_csv(tmp_path, MANIFEST)
    index = DatasetIndex.read(tmp_path if given == "the folder" else path)
    assert index.layout == "csv"
    found = [(r.name, r.image, r.mask, r.group, r.split) for r in index.records]
    assert found == [
        ("a", tmp_path / "pics/a.jpg", tmp_path / "m/a.png", "p2", "test"),
        ("b", tmp_path / "pics/b.jpg", tmp_path / "m/b.png", "p1", "train"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "image,mask\na.jpg,a.png\n",
        "\ufeffimage,mask\r\na.jpg,a.png\r\n",  # as Excel saves it
        "mask,dx,image\na.png,nevus,a.jpg\n",
        "image,mask,group,split\na.jpg,a.png,,\n",
        "image,mask,group,split\na.jpg,a.png\n",  # a short row
        'image,mask\n"a.jpg","a.png"\n\n',
    ],
    ids=["plain", "excel", "other-columns", "empty-cells", "short-row", "quoted"],
)
def test_a_manifest_needs_no_more_than_image_and_mask(tmp_path, text):
    put(tmp_path, "a.jpg", "a.png")
    write_csv(tmp_path, text)
    (record,) = DatasetIndex.read(tmp_path).records
    assert (record.name, record.group, record.split) == ("a", "a", None)


def test_a_manifest_may_name_files_elsewhere(tmp_path):
    put(tmp_path / "else", "a.jpg", "a.png")
    path = write_csv(
        tmp_path / "here", f"image,mask\n{tmp_path}/else/a.jpg,../else/a.png\n", "list.CSV"
    )
    (record,) = DatasetIndex.read(path).records
    assert record.image == tmp_path / "else/a.jpg"
    assert record.mask.samefile(tmp_path / "else/a.png")


def test_a_manifest_comes_before_the_folders_beside_it(tmp_path):
    put(tmp_path, "images/a.jpg", "masks/a.png", "images/b.jpg", "masks/b.png")
    write_csv(tmp_path, "image,mask\nimages/a.jpg,masks/a.png\n")
    assert [r.name for r in DatasetIndex.read(tmp_path).records] == ["a"]
    index = DatasetIndex.read(tmp_path, "folders")
    assert [r.name for r in index.records] == ["a", "b"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_empty_folder_matches_no_layout(tmp_path, name):
    assert list(LAYOUTS[name].read(tmp_path)) == []
    assert LAYOUTS[name].description


@pytest.mark.parametrize("suffix", MASK_SUFFIXES)
@pytest.mark.parametrize("case", [str.lower, str.upper])
def test_a_mask_is_found_by_any_suffix_and_in_any_case(tmp_path, suffix, case):
    put(tmp_path, "images/Img-1.JPG", f"masks/{case('img-1' + suffix)}.PnG")
    (record,) = DatasetIndex.read(tmp_path).records
    assert record.name == "Img-1"
    assert record.mask.name == f"{case('img-1' + suffix)}.PnG"


def test_a_mask_named_exactly_like_its_image_comes_first(tmp_path):
    put(tmp_path, "images/a.jpg", "masks/a.png", "masks/a_mask.png", "masks/a_segmentation.png")
    (record,) = DatasetIndex.read(tmp_path).records
    assert record.mask.name == "a.png"


def test_names_that_begin_alike_are_not_mixed_up(tmp_path):
    put(tmp_path, *(f"images/a{n}.jpg" for n in ("", "1", "10")))
    put(tmp_path, *(f"masks/a{n}_mask.png" for n in ("", "1", "10")))
    found = [(r.name, r.mask.name) for r in DatasetIndex.read(tmp_path).records]
    assert found == [("a", "a_mask.png"), ("a1", "a1_mask.png"), ("a10", "a10_mask.png")]


def test_superpixels_hidden_and_other_files_are_ignored(tmp_path):
    put(tmp_path, "images/ISIC_1.jpg", "masks/ISIC_1_segmentation.png")
    put(
        tmp_path,
        "images/ISIC_1_superpixels.png",
        "images/._ISIC_1.jpg",  # macOS leaves these on other systems' disks
        "images/.hidden.png",
        "images/Thumbs.db",
        "images/notes.txt",
        "masks/._ISIC_1_segmentation.png",
        "images/folder.png/inside.txt",
    )
    assert [r.name for r in DatasetIndex.read(tmp_path).records] == ["ISIC_1"]


@pytest.mark.parametrize("extension", sorted(IMAGE_SUFFIXES))
def test_every_image_format_is_listed(tmp_path, extension):
    put(tmp_path, f"b{extension}", f"a{extension.upper()}", "c.gif", "d")
    assert [p.name for p in list_images(tmp_path)] == [f"a{extension.upper()}", f"b{extension}"]


# --- what is wrong -------------------------------------------------------------------------------


def test_images_without_mask_are_counted_and_the_first_named(tmp_path):
    put(tmp_path, *(f"images/{n}.jpg" for n in "abcdefg"), "masks/c.png", "masks/g.png")
    assert refusal(tmp_path) == (
        f"data: {tmp_path}/images: 5 of 7 images have no mask in {tmp_path}/masks: "
        f"a.jpg, b.jpg, d.jpg and 2 more; add the masks or remove the images"
    )


def test_no_mask_matches(tmp_path):
    put(tmp_path, "images/a.jpg", "images/b.jpg", "masks/x.png")
    assert refusal(tmp_path) == (
        f"data: {tmp_path}/images: none of 2 images has a mask in {tmp_path}/masks, for example "
        f"a.jpg; a mask is named like its image, or with _segmentation or _mask after it"
    )


def test_empty_folders(tmp_path):
    put(tmp_path, "images/readme.txt", "masks/a.png")
    assert refusal(tmp_path).startswith(
        f"data: {tmp_path}: no pairs of image and mask; expected csv: "
    )


@pytest.mark.parametrize("names", [("a.jpg", "a.png"), ("a.jpg", "A.png")])
def test_two_images_of_one_name(tmp_path, names):
    put(tmp_path, *(f"images/{n}" for n in names), "masks/a.png")
    told = "a" if names[1] == "a.png" else "A and a"
    assert refusal(tmp_path) == f"data: {tmp_path}: 1 names occur twice: {told}; {OWN_NAME}"
    with pytest.raises(InputError, match="1 names occur twice"):  # an audit takes none of these
        DatasetIndex.read(tmp_path, lenient=True)


def test_one_name_in_two_splits(tmp_path):
    put(
        tmp_path,
        "train/images/A_1.jpg",
        "train/masks/A_1.png",
        "val/images/b.jpg",
        "val/masks/b.png",
    )
    put(
        tmp_path,
        "train/images/b.jpg",
        "train/masks/b.png",
        "test/images/a_1.jpg",
        "test/masks/a_1.png",
    )
    assert refusal(tmp_path) == (
        f"data: {tmp_path}: 2 names occur twice: A_1 and a_1 (train and test), b (train and val); "
        f"{OWN_NAME}"
    )
    index = DatasetIndex.read(tmp_path, lenient=True)
    assert [(r.name, r.split) for r in index.records] == [
        ("A_1", "train"),
        ("a_1", "test"),
        ("b", "train"),
        ("b", "val"),
    ]


@pytest.mark.parametrize("splits", [("train", "train", "test"), ("train", None)])
def test_a_name_twice_in_one_split_is_refused(tmp_path, splits):
    put(tmp_path, *(f"{i}/a.jpg" for i in range(3)), "m.png")
    rows = [f"{i}/a.jpg,m.png,{split or ''}" for i, split in enumerate(splits)]
    write_csv(tmp_path, "\n".join(["image,mask,split", *rows]))
    with pytest.raises(InputError, match="1 names occur twice: a "):
        DatasetIndex.read(tmp_path, lenient=True)


def test_broken_links_are_refused_unless_lenient(tmp_path):
    put(tmp_path, "images/a.jpg", "masks/a.png", "images/b.jpg", "masks/c.png", "else/c.jpg")
    (tmp_path / "masks/b.png").symlink_to("../gone.png")
    (tmp_path / "images/c.jpg").symlink_to("../else/c.jpg")
    assert refusal(tmp_path) == (
        f"data: {tmp_path}: 1 files are links to missing files: b.png -> ../gone.png; "
        f"repair the links or remove the pairs"
    )
    assert [r.name for r in DatasetIndex.read(tmp_path, lenient=True).records] == ["a", "b", "c"]


@contextmanager
def without_rights(folder, mode):
    """Run as an unprivileged user with the given mode of the folder."""
    folder.chmod(mode)
    own = os.geteuid()
    try:
        if own == 0:
            os.seteuid(65534)
        yield
    finally:
        os.seteuid(own)
        folder.chmod(0o755)


@pytest.mark.parametrize("mode", [0o000, 0o644])
@pytest.mark.parametrize("name", [".", "images", "train", "train/masks"])
def test_an_unreadable_folder(name, mode):
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders are root's alone
        root = Path(place)
        root.chmod(0o755)
        put(
            root,
            *(f"{split}{n}" for split in ("", "train/") for n in ("images/a.jpg", "masks/a.png")),
        )
        with without_rights(root / name, mode):
            text = refusal(root, "folders")
            if name == "images":  # which others list too
                with pytest.raises(InputError, match="cannot be read: Permission denied"):
                    list_images(root / name)
    assert text.startswith(f"data: {root / name}")
    assert text.endswith(": cannot be read: Permission denied; make it readable for this user")


def test_masks_of_both_parts_of_ham10000_have_images(tmp_path):
    put(tmp_path, *HAM, "HAM10000_segmentations_lesion_tschandl/c_segmentation.png")
    write_csv(tmp_path, "lesion_id,image_id\nL1,a\nL1,b\n", "HAM10000_metadata")
    index = DatasetIndex.read(tmp_path)
    assert index.masks_without_image == ("c_segmentation.png",)


def test_line_breaks_in_names_are_escaped(tmp_path):
    put(tmp_path, "images/a.jpg", "images/b\nc.jpg", "masks/a.png")
    assert "1 of 2 images have no mask" in refusal(tmp_path)
    put(tmp_path, "masks/b\nc.png", "images/b\nC.jpg")
    assert "1 names occur twice: b\\nC and b\\nc; " in refusal(tmp_path)


def test_a_patient_in_two_official_splits(tmp_path):
    put(tmp_path, *(f"{n}.jpg" for n in "abc"), *(f"{n}.png" for n in "abc"))
    write_csv(
        tmp_path,
        "image,mask,group,split\na.jpg,a.png,p1,train\nb.jpg,b.png,p1,test\nc.jpg,c.png,p2,test\n",
    )
    assert refusal(tmp_path) == (
        f"data: {tmp_path}: 1 groups lie in two official splits: p1 (p1 in train and test); "
        f"keep a patient's images together or drop the split"
    )


def test_a_missing_folder(tmp_path):
    assert refusal(tmp_path / "no") == (
        f"data: no such folder: {tmp_path}/no; --data, DIR and --against take the folder of a "
        f"data set or a CSV manifest"
    )


@pytest.mark.parametrize("content", ["empty", "pictures", "a file"])
def test_no_known_layout(tmp_path, content):
    root = tmp_path / "data"
    if content == "a file":
        put(tmp_path, "data")
    else:
        root.mkdir()
    if content == "pictures":
        put(root, "a.jpg", "a_mask.png")
    text = refusal(root)
    assert text.startswith(
        f"data: {root}: no pairs of image and mask; expected csv: a .csv file, or "
    )
    assert all(f"{name}: {layout.description}" in text for name, layout in LAYOUTS.items())


def test_an_unknown_layout(tmp_path):
    assert refusal(tmp_path, "isic") == "data: unknown layout 'isic' (did you mean 'isic2018'?)"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_that_the_folder_does_not_have(tmp_path, layout):
    text = refusal(tmp_path, layout)
    assert text.startswith(f"data: {tmp_path}")


def test_isic_images_without_their_ground_truth_folder(tmp_path):
    put(tmp_path, "ISIC2018_Task1-2_Training_Input/ISIC_1.jpg")
    assert refusal(tmp_path) == (
        f"data: {tmp_path}: has ISIC2018_Task1-2_Training_Input, but not its "
        f"ISIC2018_Task1_Training_GroundTruth"
    )


@pytest.mark.parametrize(
    ("layout", "folders"),
    [
        (
            "isic2016",
            {
                "train": (
                    "ISBI2016_ISIC_Part1_Training_Data",
                    "ISBI2016_ISIC_Part1_Training_GroundTruth",
                ),
                "test": ("ISBI2016_ISIC_Part1_Test_Data", "ISBI2016_ISIC_Part1_Test_GroundTruth"),
            },
        ),
        (
            "isic2017",
            {
                "train": ("ISIC-2017_Training_Data", "ISIC-2017_Training_Part1_GroundTruth"),
                "val": ("ISIC-2017_Validation_Data", "ISIC-2017_Validation_Part1_GroundTruth"),
                "test": ("ISIC-2017_Test_v2_Data", "ISIC-2017_Test_v2_Part1_GroundTruth"),
            },
        ),
    ],
)
def test_other_years_of_the_challenge_with_their_official_splits(tmp_path, layout, folders):
    for i, (images, masks) in enumerate(folders.values()):
        put(tmp_path, f"{images}/ISIC_{i}.jpg", f"{masks}/ISIC_{i}_Segmentation.png")
        put(tmp_path, f"{images}/ISIC_{i}_superpixels.png", f"{images}/{images}_metadata.csv")
    index = DatasetIndex.read(tmp_path)
    assert index.layout == layout
    assert [(r.name, r.split) for r in index.records] == [
        (f"ISIC_{i}", split) for i, split in enumerate(folders)
    ]
    # One part alone is no split.
    images, masks = folders["train"]
    put(tmp_path / "alone", f"{images}/ISIC_0.jpg", f"{masks}/ISIC_0_Segmentation.png")
    assert [r.split for r in DatasetIndex.read(tmp_path / "alone").records] == [None]


HAM = ("HAM10000_images_part_1/a.jpg", "HAM10000_images_part_2/b.jpg")
HAM += tuple(f"HAM10000_segmentations_lesion_tschandl/{n}_segmentation.png" for n in "ab")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("HAM10000_metadata", "lesion_id,image_id,dx\nL1,a,nv\nL1,b,nv\nL2,c,nv\n"),
        ("HAM10000_metadata.csv", "\ufeffimage_id,lesion_id\na,L1\nb,L1\n"),
        ("HAM10000_metadata.tab", 'lesion_id\timage_id\n"L1"\t"a"\n"L1"\t"b"\n'),
    ],
)
def test_images_of_one_lesion_of_ham10000_are_one_group(tmp_path, name, text):
    put(tmp_path, *HAM)
    write_csv(tmp_path, text, name)
    index = DatasetIndex.read(tmp_path)
    assert index.layout == "ham10000"
    assert [(r.name, r.group, r.split) for r in index.records] == [
        ("a", "L1", None),
        ("b", "L1", None),
    ]


def test_ham10000_without_metadata_or_masks(tmp_path):
    put(tmp_path, *HAM)
    assert "HAM10000_metadata is missing; its column lesion_id" in refusal(tmp_path)
    write_csv(tmp_path, "lesion,image_id\nL1,a\n", "HAM10000_metadata")
    assert "needs the columns lesion_id and image_id, lacks 'lesion_id'" in refusal(tmp_path)
    write_csv(tmp_path, "lesion_id,image_id\nL1,a\n", "HAM10000_metadata")
    assert "HAM10000_metadata has no row of b" in refusal(tmp_path)
    shutil.rmtree(tmp_path / "HAM10000_segmentations_lesion_tschandl")
    assert "but not HAM10000_segmentations_lesion_tschandl" in refusal(tmp_path)


def test_the_real_ham10000_keeps_its_lesions_together(real_data):
    index = DatasetIndex.read(real_data / "ham10000")
    assert (index.layout, len(index.records)) == ("ham10000", 155)
    assert len({r.group for r in index.records}) == 115


def test_a_ph2_case_without_lesion(tmp_path):
    put(tmp_path, "IMD002/IMD002_Dermoscopic_Image/IMD002.bmp")
    assert refusal(tmp_path) == (
        f"data: {tmp_path}/IMD002: needs IMD002_Dermoscopic_Image and IMD002_lesion"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,mask\na.jpg,a.png\nb.jpg,gone.png\n", ":3: mask: no such file: 'gone.png'"),
        ("image,mask\na.jpg,a.png\n,a.png\n", ":3: image: no such file: ''"),
        ("image,mask\na.jpg\n", ":2: mask: no such file: None"),
        ("image,mask\n.,a.png\n", ":2: image: no such file: '.'"),
        ("image,mask\na.jpg,a.png\n\n\nno.jpg,b.png\n", ":5: image: no such file: 'no.jpg'"),
        (
            "image,mask,split\na.jpg,a.png,train\nb.jpg,b.png,holdout\n",
            ":3: split must be train, val or test, got 'holdout'",
        ),
        (
            "picture,mask\na.jpg,a.png\n",
            ": needs the columns image and mask (group, split and set may follow), got picture, "
            "mask",
        ),
        (
            "image;mask\na.jpg;a.png\n",
            ": needs the columns image and mask (group, split and set may follow), got image;mask",
        ),
        ("", ": needs the columns image and mask (group, split and set may follow), got none"),
        ("image,mask\n", ": has no rows below its header"),
        (b"image,mask\n\xff\xfe,b.png\n", ": not a readable CSV file: 'utf-8' codec can't decode"),
        ('image,mask\n"a.jpg\0",a.png\n', ""),
    ],
)
def test_a_manifest_that_is_wrong_is_refused_with_the_line(tmp_path, text, message):
    put(tmp_path, "a.jpg", "b.jpg", "a.png", "b.png")
    path = write_csv(tmp_path, text)
    assert refusal(path).startswith(f"data: {path}{message}")


def test_a_manifest_that_is_not_there(tmp_path):
    put(tmp_path, "list.csv/a.txt")
    text = refusal(tmp_path / "list.csv", "csv")
    assert text.startswith(f"data: {tmp_path}/list.csv: no pairs of image and mask; expected csv: ")


# --- fingerprint ---------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    """Two pairs, by a manifest that knows groups and splits."""
    root = tmp_path / "small"
    put(root, "a.jpg", "b.jpg", "a.png", "b.png")
    write_csv(root, "image,mask,group,split\na.jpg,a.png,p,train\nb.jpg,b.png,q,test\n")
    return root


def fingerprint(root):
    return DatasetIndex.read(root).fingerprint()


def test_a_copy_elsewhere_at_another_time_has_the_same_fingerprint(small, tmp_path):
    copy = tmp_path / "another" / "place"
    shutil.copytree(small, copy)
    for path in copy.iterdir():
        os.utime(path, (1, 1))
    assert fingerprint(copy) == fingerprint(small)
    assert len(fingerprint(small)) == 16 and int(fingerprint(small), 16) >= 0


def test_the_same_pairs_in_another_layout_have_the_same_fingerprint(tmp_path):
    put(tmp_path / "one", "images/a.jpg", "masks/a.png")
    put(tmp_path / "two", "x.png", "a.jpg")
    write_csv(tmp_path / "two", "image,mask\na.jpg,x.png\n")
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two")


@pytest.mark.parametrize(
    "change",
    [
        lambda root: put(root, "a.jpg", content=b"longer than it was"),
        lambda root: put(root, "b.png", content=b""),
        lambda root: write_csv(root, "image,mask,group,split\na.jpg,a.png,p,train\n"),
        lambda root: write_csv(root, (root / "manifest.csv").read_text().replace("q", "r")),
        lambda root: write_csv(root, (root / "manifest.csv").read_text().replace("test", "val")),
        lambda root: (
            (root / "a.jpg").rename(root / "c.jpg"),
            write_csv(root, (root / "manifest.csv").read_text().replace("a.jpg", "c.jpg")),
        ),
        lambda root: (
            put(root, "c.jpg", "c.png"),
            write_csv(root, (root / "manifest.csv").read_text() + "c.jpg,c.png,s,\n"),
        ),
    ],
    ids=["image", "mask", "removed", "group", "split", "renamed", "added"],
)
def test_any_change_gives_another_fingerprint(small, change):
    before = fingerprint(small)
    change(small)
    assert fingerprint(small) != before


# --- the real thing ------------------------------------------------------------------------------


def test_the_real_isic_folder(real_data):
    index = DatasetIndex.read(real_data / "isic2018")
    assert index.layout == "isic2018"
    assert len(index.records) == 2057
    assert len({r.name for r in index.records}) == len({r.mask for r in index.records}) == 2057
    assert all(r.mask.name == f"{r.name}_segmentation.png" for r in index.records)
    assert all(r.split is None and r.group == r.name for r in index.records)
    assert [r.name for r in index.records] == sorted(r.name for r in index.records)


def test_the_real_ph2_folder(real_data):
    index = DatasetIndex.read(real_data / "ph2")
    assert index.layout == "ph2"
    assert len(index.records) == 10
    assert all(r.mask.name == f"{r.name}_lesion.bmp" for r in index.records)
