"""Numbering, splitting, windows, titles, fingerprint and what is kept, on inputs small enough to check by hand."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from src.core.data_utils import Rows, SequenceDataset, load_dataset
from src.core.datasets.base import Ids, SplitConfig
from src.core.datasets.csv_log import CsvConfig, CsvLog
from src.core.errors import UserError
from src.core.sequences import numbering
from src.core.sequences.titles import make_titles

LOGGER = logging.getLogger("test_data_utils")
ITEMS = "item,title\n" + "".join(f"{i},Title {i}\n" for i in range(1, 10))

# User 1 in time order: 3 1 4 2 5; user 2: 9 3 1 (the tie at t=5 keeps file order); user 3 has two only.
LOG = """user,item,timestamp
2,9,5
1,4,30
1,3,10
3,1,1
2,3,5
1,1,20
1,2,40
1,5,50
2,1,60
3,2,2
"""


def csv_config(tmp_path: Path, log: str = LOG, items: str = ITEMS, **changes) -> CsvConfig:
    folder = tmp_path / "given"
    folder.mkdir(exist_ok=True)
    (folder / "interactions.csv").write_text(log, encoding="utf-8")
    (folder / "items.csv").write_text(items, encoding="utf-8")
    return CsvConfig(**{"min_user_inter": 3, "raw_dir": str(folder), **changes})


def load(config: CsvConfig, tmp_path: Path) -> SequenceDataset:
    return load_dataset(config, tmp_path / "data", LOGGER)


def pairs(dataset: SequenceDataset, rows: Rows) -> list[tuple[int, list[int], int]]:
    """(user, history, target) with raw item ids."""
    raw = [int(item) for item in dataset.item_ids]
    return [
        (int(rows.user[i]), [raw[item] for item in rows.history(i)], raw[rows.targets[i]]) for i in range(len(rows))
    ]


# --- split --------------------------------------------------------------------------------------------------


def test_leave_one_out_rows(tmp_path):
    dataset = load(csv_config(tmp_path), tmp_path)

    assert dataset.item_ids == ["1", "2", "3", "4", "5", "9"]
    assert dataset.titles == ["Title 1", "Title 2", "Title 3", "Title 4", "Title 5", "Title 9"]
    assert (dataset.num_items, dataset.pad_id, dataset.num_users) == (6, 6, 2)
    assert pairs(dataset, dataset.train) == [(0, [3], 1), (0, [3, 1], 4)]
    assert pairs(dataset, dataset.valid) == [(0, [3, 1, 4], 2), (1, [9], 3)]
    assert pairs(dataset, dataset.test) == [(0, [3, 1, 4, 2], 5), (1, [9, 3], 1)]


def test_temporal_rows_are_cut_by_target_time(tmp_path):
    # Two users alternate: user 1 at even times, user 2 at odd ones; 2 * 6 interactions, 10 rows, 8:1:1.
    log = "user,item,timestamp\n" + "".join(f"{1 + t % 2},{1 + t // 2},{t}\n" for t in range(12))
    dataset = load(csv_config(tmp_path, log, split=SplitConfig(method="temporal")), tmp_path)

    expected = [(t % 2, list(range(1, 1 + t // 2)), 1 + t // 2) for t in range(2, 12)]
    assert pairs(dataset, dataset.train) == expected[:8]
    assert pairs(dataset, dataset.valid) == expected[8:9]
    assert pairs(dataset, dataset.test) == expected[9:]


def test_temporal_ties_go_by_user_then_position(tmp_path):
    log = "user,item,timestamp\n" + "".join(f"{user},{item},7\n" for item in range(1, 7) for user in (2, 1))
    dataset = load(csv_config(tmp_path, log, split=SplitConfig(method="temporal")), tmp_path)

    rows = pairs(dataset, dataset.train) + pairs(dataset, dataset.valid) + pairs(dataset, dataset.test)
    assert [(user, target) for user, _, target in rows] == [(u, i) for u in (0, 1) for i in range(2, 7)]


def test_temporal_needs_a_row_for_each_part(tmp_path):
    # User 1 alone has 4 rows: cut at 4 * 8 // 10 = 3 and 4 * 9 // 10 = 3, nothing is left to validate on.
    with pytest.raises(UserError, match=r"dataset\.split\.method='temporal': 4 \(history, target\) pairs"):
        load(csv_config(tmp_path, split=SplitConfig(method="temporal"), min_user_inter=5), tmp_path)


def test_short_users_are_dropped_and_logged_once(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        load(csv_config(tmp_path), tmp_path)
    assert caplog.text.count("dropped 1 of 3 users with fewer than 3 interactions") == 1


@pytest.mark.parametrize(
    ("duplicates", "history", "said"),
    [("drop", [3, 1, 4, 2], "dropped"), ("keep", [3, 3, 1, 1, 4, 4, 2, 2, 5], "kept")],
)
def test_exact_repeats_are_dropped_or_kept_and_counted(tmp_path, caplog, duplicates, history, said):
    header, *lines = LOG.splitlines(keepends=True)
    plain = load(csv_config(tmp_path), tmp_path)
    dataset = load(csv_config(tmp_path, header + "".join(lines + lines), duplicates=duplicates), tmp_path)
    assert pairs(dataset, dataset.test)[0] == (0, history, 5)
    assert (dataset.fingerprint == plain.fingerprint) == (duplicates == "drop")
    assert f"{said} 10 of 20 interactions that repeat user, item and time exactly" in caplog.messages


@pytest.mark.parametrize("block", [1, 4, 7])
@pytest.mark.parametrize("method", ["leave_one_out", "temporal"])
def test_a_log_in_blocks_of_users_is_the_log(tmp_path, monkeypatch, block, method):
    random = np.random.default_rng(0)
    lines = [f"{u},{i},{t}\n" for u, i, t in zip(*(random.integers(1, n, 90) for n in (9, 4, 9)), strict=True)]
    config = csv_config(tmp_path, "user,item,timestamp\n" + "".join(lines), split=SplitConfig(method=method))
    whole = load_dataset(config, tmp_path / "whole", LOGGER)
    monkeypatch.setattr(numbering, "_BLOCK", block)
    assert load_dataset(config, tmp_path / "blocks", LOGGER).fingerprint == whole.fingerprint
    # As sorting the lines does it that come first of their kind: by user, then time, then place.
    log = sorted((line.split(",") for line in dict.fromkeys(lines)), key=lambda fields: (fields[0], int(fields[2])))
    assert [whole.item_ids[item] for item in whole.train.items] == [item for _, item, _ in log]


def test_the_same_pair_at_another_time_is_no_repeat(tmp_path, caplog):
    dataset = load(csv_config(tmp_path, LOG + "1,4,31\n1,4,31\n1,4,30\n"), tmp_path)
    assert "dropped 2 of 13 interactions that repeat user, item and time exactly" in caplog.messages
    assert pairs(dataset, dataset.test)[0] == (0, [3, 1, 4, 4, 2], 5)


def test_repeats_do_not_make_a_short_user_long(tmp_path):
    dataset = load(csv_config(tmp_path, LOG + "3,2,2\n3,2,2\n"), tmp_path)
    assert dataset.num_users == 2


def test_ids_that_may_not_mean_what_they_say_are_warned_of(tmp_path, caplog):
    ids = ["u", "u ", "U", "7", "7.0", "Caf\u00e9", "Cafe\u0301", "None"]
    log = "user,item,timestamp\n" + "".join(f"{user},{item},{item}\n" for user in ids for item in range(1, 5))
    dataset = load(csv_config(tmp_path, log), tmp_path)
    assert dataset.num_users == len(ids)
    assert "1 user ids have blanks at their ends, such as 'u '" in caplog.messages
    assert any(m.startswith("4 user ids differ from another one in blanks, case") for m in caplog.messages)
    assert "user 'None' is taken for an id and has 4 interactions" in caplog.messages
    assert not any("item ids" in message for message in caplog.messages)


def test_nobody_left_names_the_key(tmp_path):
    with pytest.raises(UserError, match=r"dataset\.min_user_inter=6: no user is left, .* has 5 interactions"):
        load(csv_config(tmp_path, min_user_inter=6), tmp_path)


def test_items_of_dropped_users_only_are_dropped(tmp_path):
    dataset = load(csv_config(tmp_path, min_user_inter=5), tmp_path)
    assert dataset.item_ids == ["1", "2", "3", "4", "5"]  # item 9 was user 2's


def test_max_train_rows_samples_in_order(tmp_path):
    log = "user,item,timestamp\n" + "".join(f"{u},{1 + i},{i}\n" for u in range(20) for i in range(8))
    everything = load(csv_config(tmp_path, log), tmp_path)
    sample = load(csv_config(tmp_path, log, max_train_rows=30), tmp_path)
    again = load(csv_config(tmp_path, log, max_train_rows=30), tmp_path / "elsewhere")
    bigger = load(csv_config(tmp_path, log, max_train_rows=1000), tmp_path)

    assert len(everything.train) == 20 * 5 and len(sample.train) == 30
    assert (np.diff(sample.train.pos) > 0).all()
    assert set(sample.train.pos) < set(everything.train.pos)
    assert sample.fingerprint == again.fingerprint != everything.fingerprint
    assert bigger.fingerprint == everything.fingerprint
    np.testing.assert_array_equal(sample.test.pos, everything.test.pos)


# --- rows ---------------------------------------------------------------------------------------------------


@pytest.fixture
def rows() -> Rows:
    items = np.array([10, 11, 12, 13, 20, 21], dtype=np.int32)
    return Rows(items, np.array([0, 4, 6]), np.array([1, 3, 5]))


def test_windows_keep_the_last_items_and_pad_right(rows):
    history, length, target = rows.windows(max_len=2, pad_id=99)
    assert history.tolist() == [[10, 99], [11, 12], [20, 99]]
    assert length.tolist() == [1, 2, 1]
    assert target.tolist() == [11, 13, 21]
    assert history.dtype == length.dtype == target.dtype == np.int64


def test_windows_wider_than_all_items(rows):
    history, length, _ = rows.windows(max_len=9, pad_id=99, index=np.array([2, 1]))
    assert history.tolist() == [[20] + 8 * [99], [10, 11, 12] + 6 * [99]]
    assert length.tolist() == [1, 3]


def test_select_and_history(rows):
    chosen = rows.select(np.array([False, True, True]))
    assert len(chosen) == 2
    assert chosen.targets.tolist() == [13, 21]
    assert chosen.history(0).tolist() == [10, 11, 12]
    assert chosen.user.tolist() == [0, 1]


def test_rows_in_parts_are_the_rows(rows):
    parts = list(rows.parts(2))
    assert [len(part) for part in parts] == [2, 1]
    assert np.concatenate([part.start for part in parts]).tolist() == rows.start.tolist() == [0, 0, 4]
    assert [rows.target(i) for i in range(3)] == rows.targets.tolist()


def test_windows_of_no_rows(rows):
    history, length, target = rows.windows(3, 99, np.array([], dtype=np.int64))
    assert history.shape == (0, 3) and len(length) == len(target) == 0


def test_rows_are_immutable(rows):
    with pytest.raises(AttributeError):
        rows.items = rows.pos


# --- ids and titles -----------------------------------------------------------------------------------------


def test_ids_are_ordered_by_value_when_all_are_numbers():
    codes, ids = Ids.of(np.array(["10", "9", "10", "100"], dtype=object)).in_order()
    assert ids == ["9", "10", "100"]
    assert codes.tolist() == [1, 0, 1, 2]


def test_ids_may_have_more_digits_than_python_makes_a_number_of():
    large, larger = "1" + 5000 * "0", "2" + 5000 * "0"
    assert Ids.of(np.array([larger, "0009", large, "9"], dtype=object)).in_order()[1] == ["0009", "9", large, larger]


def test_ids_are_ordered_as_text_otherwise():
    codes, ids = Ids.of(np.array(["b2", "10", "9"], dtype=object)).in_order()
    assert ids == ["10", "9", "b2"]
    assert codes.tolist() == [2, 0, 1]


def test_titles_are_made_distinct_and_one_line(caplog):
    with caplog.at_level(logging.INFO):
        titles = make_titles(["A\n B", "Up", "up", "Up (2)", " Up ", ""], list("uvwxyz"), LOGGER)
    assert titles == ["A B", "Up", "up (3)", "Up (2)", "Up (4)", "item z"]
    assert "1 of 6 items have no title" in caplog.text
    assert "2 of 6 titles occurred before" in caplog.text


# --- fingerprint and what is kept ---------------------------------------------------------------------------


def test_a_title_of_which_nothing_is_to_be_seen_is_none(caplog):
    titles = make_titles(["\u200b", "\u3000\u2060", "a\u200bb", "\u2581"], ["7", "8", "9", "10"], LOGGER)
    assert titles == ["item 7", "item 8", "a\u200bb", "\u2581"]
    assert '2 of 4 items have no title: named "item <id>"' in caplog.messages


def test_titles_that_programs_write_for_a_missing_one_are_warned_of(caplog):
    assert make_titles(["nan", "x", "NaN"], ["1", "2", "3"], LOGGER) == ["nan", "x", "NaN (2)"]
    assert "2 items have titles such as 'nan', which may stand for a missing one" in caplog.messages


def test_fingerprint_ignores_window_and_folder(tmp_path):
    first = load(csv_config(tmp_path), tmp_path)
    wider = load(csv_config(tmp_path, max_seq_len=7), tmp_path)
    moved = load(csv_config(tmp_path, raw_dir=None), _default_folder(tmp_path))
    assert wider.max_seq_len == 7
    assert first.fingerprint == wider.fingerprint == moved.fingerprint
    assert len(first.fingerprint) == 64


def _default_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "moved" / "data" / "raw" / "csv"
    folder.mkdir(parents=True)
    (folder / "interactions.csv").write_text(LOG)
    (folder / "items.csv").write_text(ITEMS)
    return tmp_path / "moved"


@pytest.mark.parametrize(
    ("log", "items"),
    [
        (LOG, ITEMS.replace("Title 4", "Title four")),
        (LOG.replace("1,5,50", "1,6,50"), ITEMS),
        (LOG.replace("2,3,5\n", "2,3,4\n"), ITEMS),
        (LOG.replace("\n2,", "\n0,"), ITEMS),
    ],
    ids=["title", "item", "order", "users"],
)
def test_fingerprint_changes_with_the_data(tmp_path, log, items):
    before = load(csv_config(tmp_path), tmp_path).fingerprint
    assert load(csv_config(tmp_path, log, items), tmp_path).fingerprint != before


def same(first: SequenceDataset, second: SequenceDataset) -> bool:
    arrays = [
        np.array_equal(getattr(getattr(first, split), part), getattr(getattr(second, split), part))
        for split in ("train", "valid", "test")
        for part in ("items", "start", "pos", "user")
    ]
    keys = ("name", "num_items", "num_users", "titles", "item_ids", "max_seq_len", "fingerprint")
    return all(arrays) and all(getattr(first, key) == getattr(second, key) for key in keys)


def test_what_was_kept_is_the_same_data_set_without_the_raw_files_being_read(tmp_path, monkeypatch):
    items = ITEMS.replace("Title 4", '"Comma, and ""quote"""')
    config = csv_config(tmp_path, items=items)
    first = load(config, tmp_path)
    monkeypatch.setattr(CsvLog, "read", None)  # calling it would fail
    second = load(config, tmp_path)
    assert same(first, second)
    assert 'Comma, and "quote"' in second.titles
    assert second.train.items.dtype == np.int32 and second.train.pos.dtype == np.int32
    assert load(replace(config, max_seq_len=3), tmp_path).max_seq_len == 3


def test_other_settings_and_changed_raw_files_are_processed_anew(tmp_path):
    load(csv_config(tmp_path), tmp_path)
    assert load(csv_config(tmp_path, min_user_inter=5), tmp_path).num_users == 1
    assert load(csv_config(tmp_path, LOG + "3,3,3\n"), tmp_path).num_users == 3


def test_a_relative_raw_dir_starts_where_the_command_was_called(tmp_path, monkeypatch):
    csv_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert load(CsvConfig(min_user_inter=3, raw_dir="given"), tmp_path).num_users == 2
