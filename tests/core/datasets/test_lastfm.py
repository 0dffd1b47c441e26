"""iLoRA's windows of LastFM: what the reader returns, and what each kind of bad input is answered with."""

import gzip
import logging

import pandas as pd
import pytest
from raw_examples import lastfm_folder, needs

from src.core.data_utils import load_dataset
from src.core.datasets.lastfm import FILES, LastfmConfig, read_lastfm
from src.core.errors import UserError

LOGGER = logging.getLogger("test_lastfm")


def test_lastfm_rows(tmp_path):
    dataset = load_dataset(LastfmConfig(raw_dir=str(lastfm_folder(tmp_path))), tmp_path / "data", LOGGER)
    assert dataset.titles == ["Zero", "One::1", "Zwei ä"]
    for number, rows in enumerate((dataset.train, dataset.valid, dataset.test)):
        assert [rows.history(i).tolist() for i in range(2)] == [[0, 1], [2, 0, 1]]
        assert rows.targets.tolist() == [2, 0]
        assert rows.user.tolist() == [2 * number, 2 * number + 1]
    assert (dataset.num_users, dataset.pad_id) == (6, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"next": [2, 0, 3]}, r"train_data\.df: row 2: item 3 is not in id2name\.txt \(ids 0 to 2\)"),
        ({"seq": [[0, 9, 3], [3, 3, 3], [2, 0, 1]]}, r"train_data\.df: row 0: item 9 is not in id2name"),
        ({"len_seq": [2, 1, 4]}, r"train_data\.df: row 2: len_seq 4 is not between 0 and 3"),
        ({"seq": [[0], [3, 3], [2]]}, r"train_data\.df: seq must hold lists of ids of one length"),
        ({"len_seq": [0, 0, 0]}, r"train_data\.df: has no row with a history"),
    ],
)
def test_malformed_windows_are_named(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        read_lastfm(lastfm_folder(tmp_path, **changes))


def test_missing_column_of_windows(tmp_path):
    folder = lastfm_folder(tmp_path)
    pd.DataFrame({"seq": [[0]], "len_seq": [1]}).to_pickle(folder / "Val_data.df")
    with pytest.raises(UserError, match=r"Val_data\.df: the column 'next' is missing; it has seq, len_seq"):
        read_lastfm(folder)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("0::a\nb\n", r"id2name\.txt:2: expected id::name, got 'b'"),
        (f"0::a\n{5000 * '1'}::b\n", r"id2name\.txt:2: expected id::name, got '1111"),
        ("0::a\n0::b\n", r"id2name\.txt:2: item 0 occurs twice"),
        ("0::a\n2::b\n", r"id2name\.txt: ids must be 0 to 1 without a gap, but 1 is missing"),
    ],
)
def test_malformed_names_are_named(tmp_path, names, message):
    folder = lastfm_folder(tmp_path)
    (folder / "id2name.txt").write_text(names)
    with pytest.raises(UserError, match=message):
        read_lastfm(folder)


def test_published_lastfm(tmp_path):
    dataset = load_dataset(LastfmConfig(raw_dir=str(needs("lastfm"))), tmp_path, LOGGER)
    assert dataset.num_items == 4606
    assert (len(dataset.train), len(dataset.valid), len(dataset.test)) == (50_800 - 976, 122, 122)
    assert (dataset.train.pos - dataset.train.start).max() == 10
    assert sum(dataset.train.pos - dataset.train.start >= 3) == 47_872  # what iLoRA trains on


def test_gzipped_files_with_a_mark_are_read_and_what_is_dropped_is_counted(tmp_path):
    lastfm_folder(tmp_path)
    names = (tmp_path / "id2name.txt").read_text(encoding="utf-8")
    for name in FILES:
        data = names.encode("utf-8-sig") if name.endswith(".txt") else (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(data))
    splits = read_lastfm(tmp_path)
    assert splits.titles == ["Zero", "One::1", "Zwei ä"] and splits.warnings == ()
    assert splits.notes[0] == "train_data.df.gz: dropped 1 rows without a history"


def test_windows_padded_on_the_left_are_warned_of(tmp_path):
    lastfm_folder(tmp_path, seq=[[0, 0, 2], [0, 1, 2], [0, 3, 3], [0, 1, 3]], len_seq=[1, 2, 1, 2], next=[2, 0, 0, 1])
    warnings = read_lastfm(tmp_path).warnings
    assert warnings[0].startswith("train_data.df: 2 of 4 rows begin with id 0 and have items behind their len_seq")
    assert len(warnings) == 3
