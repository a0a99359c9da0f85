"""SOURCES: public data sets of dermoscopy with lesion masks, and where their owners keep them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_ISIC = "https://isic-challenge-data.s3.amazonaws.com"
_ISIC_PAGE = "https://challenge.isic-archive.com/data/"


@dataclass(frozen=True)
class Source:
    """A data set. license: its name; terms: where it stands in full.

    base: the address below which the files lie, each under its name; for a data set of a
    Dataverse, that of the installation, and dataset its DOI. size: gigabytes to be fetched, about.
    """

    about: str
    license: str
    terms: str
    base: str
    files: tuple[str, ...]
    size: float
    dataset: str | None = None


def _pairs(images: str, masks: str, *words: str) -> tuple[str, ...]:
    return tuple(f"{name.format(word)}.zip" for word in words for name in (images, masks))


SOURCES: Mapping[str, Source] = {
    "isic2016": Source(
        "ISIC 2016, part 1: 900 and 379 pairs (Gutman et al., arXiv:1605.01397)",
        "CC0 1.0",
        _ISIC_PAGE,
        f"{_ISIC}/2016",
        _pairs(
            "ISBI2016_ISIC_Part1_{}_Data",
            "ISBI2016_ISIC_Part1_{}_GroundTruth",
            *("Training", "Test"),
        ),
        0.9,
    ),
    "isic2017": Source(
        "ISIC 2017, part 1: 2000, 150 and 600 pairs (Codella et al., arXiv:1710.05006)",
        "CC0 1.0",
        _ISIC_PAGE,
        f"{_ISIC}/2017",
        _pairs(
            "ISIC-2017_{}_Data",
            "ISIC-2017_{}_Part1_GroundTruth",
            *("Training", "Validation", "Test_v2"),
        ),
        12.0,
    ),
    "isic2018": Source(
        "ISIC 2018, task 1: 2594, 100 and 1000 pairs (Codella et al., arXiv:1902.03368)",
        "CC BY-NC 4.0",
        _ISIC_PAGE,
        f"{_ISIC}/2018",
        _pairs(
            "ISIC2018_Task1-2_{}_Input",
            "ISIC2018_Task1_{}_GroundTruth",
            *("Training", "Validation", "Test"),
        ),
        13.0,
    ),
    "ham10000": Source(
        "HAM10000: 10015 pairs of 7470 lesions (Tschandl et al., doi:10.1038/sdata.2018.161)",
        "CC BY-NC 4.0",
        "https://doi.org/10.7910/DVN/DBW86T",
        "https://dataverse.harvard.edu",
        (
            "HAM10000_images_part_1.zip",
            "HAM10000_images_part_2.zip",
            "HAM10000_segmentations_lesion_tschandl.zip",
            "HAM10000_metadata",
        ),
        2.8,
        dataset="doi:10.7910/DVN/DBW86T",
    ),
}

#: Data sets that their owners hand out in person, and how.
BY_HAND: Mapping[str, str] = {
    "ph2": "the ADDI project hands it out by a form at "
    "https://www.fc.up.pt/addi/ph2%20database.html; unpack its archive and give the "
    "folder that holds 'PH2 Dataset images' as --data",
}
