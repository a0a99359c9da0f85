"""Public dermoscopy data sets with lesion masks, and the servers of their owners."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_ISIC = "https://isic-challenge-data.s3.amazonaws.com"
_ISIC_PAGE = "https://challenge.isic-archive.com/data/"


@dataclass(frozen=True)
class DatasetSource:
    """A downloadable data set; with a ``doi`` the server is a Dataverse installation."""

    about: str
    license: str
    license_url: str
    base_url: str
    files: tuple[str, ...]
    size_gb: float
    doi: str | None = None


def _zip_names(images: str, masks: str, *splits: str) -> tuple[str, ...]:
    return tuple(f"{name.format(split)}.zip" for split in splits for name in (images, masks))


SOURCES: Mapping[str, DatasetSource] = {
    "isic2016": DatasetSource(
        about="ISIC 2016, part 1: 900 and 379 pairs (Gutman et al., arXiv:1605.01397)",
        license="CC0 1.0",
        license_url=_ISIC_PAGE,
        base_url=f"{_ISIC}/2016",
        files=_zip_names(
            "ISBI2016_ISIC_Part1_{}_Data",
            "ISBI2016_ISIC_Part1_{}_GroundTruth",
            *("Training", "Test"),
        ),
        size_gb=0.9,
    ),
    "isic2017": DatasetSource(
        about="ISIC 2017, part 1: 2000, 150 and 600 pairs (Codella et al., arXiv:1710.05006)",
        license="CC0 1.0",
        license_url=_ISIC_PAGE,
        base_url=f"{_ISIC}/2017",
        files=_zip_names(
            "ISIC-2017_{}_Data",
            "ISIC-2017_{}_Part1_GroundTruth",
            *("Training", "Validation", "Test_v2"),
        ),
        size_gb=12.0,
    ),
    "isic2018": DatasetSource(
        about="ISIC 2018, task 1: 2594, 100 and 1000 pairs (Codella et al., arXiv:1902.03368)",
        license="CC BY-NC 4.0",
        license_url=_ISIC_PAGE,
        base_url=f"{_ISIC}/2018",
        files=_zip_names(
            "ISIC2018_Task1-2_{}_Input",
            "ISIC2018_Task1_{}_GroundTruth",
            *("Training", "Validation", "Test"),
        ),
        size_gb=13.0,
    ),
    "ham10000": DatasetSource(
        about="HAM10000: 10015 pairs of 7470 lesions (Tschandl et al., doi:10.1038/sdata.2018.161)",
        license="CC BY-NC 4.0",
        license_url="https://doi.org/10.7910/DVN/DBW86T",
        base_url="https://dataverse.harvard.edu",
        files=(
            "HAM10000_images_part_1.zip",
            "HAM10000_images_part_2.zip",
            "HAM10000_segmentations_lesion_tschandl.zip",
            "HAM10000_metadata",
        ),
        size_gb=2.8,
        doi="doi:10.7910/DVN/DBW86T",
    ),
}

#: Data sets that cannot be downloaded automatically, and how to get them.
MANUAL_DOWNLOADS: Mapping[str, str] = {
    "ph2": "the ADDI project distributes it through a form at "
    "https://www.fc.up.pt/addi/ph2%20database.html; unpack its archive and pass the "
    "folder that contains 'PH2 Dataset images' as --data",
}
