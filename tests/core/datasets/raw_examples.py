"""Tiny raw files for the tests of the data sets, and the published ones where this machine has them."""

import os
from pathlib import Path

import pandas as pd
import pytest

from src.core.datasets.lastfm import FILES

ROOT = Path(__file__).parents[3]
SHARED = ROOT / os.environ.get("SHARED_DATASETS", "../shared/datasets")

RATINGS_100K = "7\t242\t3\t30\n7\t10\t5\t20\n8\t242\t1\t10\n"
MOVIES_100K = "10|Matrix, The (1999)|x||u|0\n242|Kolya (1996)|x||u|0\n"
RATINGS_1M = "7::242::3::30\n7::10::5::20\n8::242::1::10\n"
MOVIES_1M = "10::Matrix, The (1999)::Action\n242::Kolya (1996)::Drama|Comedy\n"


def write(folder: Path, **files: str) -> Path:
    """Write files whose names have `__` for the dot."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content, encoding="latin-1")
    return folder


def needs(name: str) -> Path:
    """The folder of a published data set; the test is skipped where there is none."""
    if not (SHARED / name).is_dir():
        pytest.skip(f"SHARED_DATASETS has no {name}")
    return SHARED / name


def lastfm_folder(folder: Path, **changes: list) -> Path:
    """Three items, padding id 3; the second row is an empty history as the published files write it."""
    frame = {"seq": [[0, 1, 3], [3, 3, 3], [2, 0, 1]], "len_seq": [2, 1, 3], "next": [2, 0, 0], **changes}
    for name in FILES[:3]:
        pd.DataFrame(frame).to_pickle(folder / name)
    (folder / "id2name.txt").write_text("0::Zero\n1::One::1\n2::Zwei ä\n", encoding="utf-8")
    return folder
