"""Numbering, splitting, windows, titles, fingerprint and cache, on inputs small enough to check by hand."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from src.core.data_utils import (
    CsvColumns,
    DatasetConfig,
    Rows,
    SequenceDataset,
    SplitConfig,
    load_dataset,
    make_titles,
    number_ids,
)
from src.core.errors import UserError

LOGGER = logging.getLogger("test_data_utils")
ROOT = Path(__file__).parents[2]
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


def csv_config(tmp_path: Path, log: str = LOG, items: str = ITEMS, **changes) -> DatasetConfig:
    folder = tmp_path / "given"
    folder.mkdir(exist_ok=True)
    (folder / "interactions.csv").write_text(log, encoding="utf-8")
    (folder / "items.csv").write_text(items, encoding="utf-8")
    return DatasetConfig(**{"name": "csv", "min_user_inter": 3, "raw_dir": str(folder), **changes})


def load(cfg: DatasetConfig, tmp_path: Path) -> SequenceDataset:
    return load_dataset(cfg, tmp_path / "data", LOGGER)


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
    dataset = load(csv_config(tmp_path, log, split=SplitConfig("temporal")), tmp_path)

    expected = [(t % 2, list(range(1, 1 + t // 2)), 1 + t // 2) for t in range(2, 12)]
    assert pairs(dataset, dataset.train) == expected[:8]
    assert pairs(dataset, dataset.valid) == expected[8:9]
    assert pairs(dataset, dataset.test) == expected[9:]


def test_temporal_ties_go_by_user_then_position(tmp_path):
    log = "user,item,timestamp\n" + "".join(f"{user},{item},7\n" for item in range(1, 7) for user in (2, 1))
    dataset = load(csv_config(tmp_path, log, split=SplitConfig("temporal")), tmp_path)

    rows = pairs(dataset, dataset.train) + pairs(dataset, dataset.valid) + pairs(dataset, dataset.test)
    assert [(user, target) for user, _, target in rows] == [(u, i) for u in (0, 1) for i in range(2, 7)]


def test_temporal_needs_a_row_for_each_part(tmp_path):
    # User 1 alone has 4 rows: cut at 4 * 8 // 10 = 3 and 4 * 9 // 10 = 3, nothing is left to validate on.
    with pytest.raises(UserError, match=r"dataset\.split\.method='temporal': 4 \(history, target\) pairs"):
        load(csv_config(tmp_path, split=SplitConfig("temporal"), min_user_inter=5), tmp_path)


def test_short_users_are_dropped_and_logged_once(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        load(csv_config(tmp_path), tmp_path)
    assert caplog.text.count("dropped 1 of 3 users with fewer than 3 interactions") == 1


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
    return Rows(items, np.array([0, 0, 4]), np.array([1, 3, 5]), np.array([0, 0, 1], dtype=np.int32))


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


def test_windows_of_no_rows(rows):
    history, length, target = rows.windows(3, 99, np.array([], dtype=np.int64))
    assert history.shape == (0, 3) and len(length) == len(target) == 0


# --- ids and titles -----------------------------------------------------------------------------------------


def test_ids_are_ordered_by_value_when_all_are_numbers():
    codes, ids = number_ids(np.array(["10", "9", "10", "100"], dtype=object))
    assert ids == ["9", "10", "100"]
    assert codes.tolist() == [1, 0, 1, 2]


def test_ids_are_ordered_as_text_otherwise():
    codes, ids = number_ids(np.array(["b2", "10", "9"], dtype=object))
    assert ids == ["10", "9", "b2"]
    assert codes.tolist() == [2, 0, 1]


def test_titles_are_made_distinct_and_one_line(caplog):
    with caplog.at_level(logging.INFO):
        titles = make_titles(["A\n B", "Up", "up", "Up (2)", " Up ", ""], list("uvwxyz"), LOGGER)
    assert titles == ["A B", "Up", "up (3)", "Up (2)", "Up (4)", "item z"]
    assert "1 of 6 items have no title" in caplog.text
    assert "2 of 6 titles occurred before" in caplog.text


# --- fingerprint and cache ----------------------------------------------------------------------------------


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


def cache_folder(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "data" / "processed" / "csv").iterdir()
    return folder


def test_cache_gives_the_same_data_set_without_reading_raw_files(tmp_path, monkeypatch):
    items = ITEMS.replace("Title 4", '"Comma, and ""quote"""')
    cfg = csv_config(tmp_path, items=items)
    first = load(cfg, tmp_path)
    monkeypatch.setattr("src.core.raw_data.read_csv", None)  # calling it would fail
    second = load(cfg, tmp_path)
    assert same(first, second)
    assert 'Comma, and "quote"' in second.titles
    assert second.train.items.dtype == np.int32 and second.train.pos.dtype == np.int64


@pytest.mark.parametrize("name", ["rows.npz", "items.csv", "meta.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damaged_cache_is_rebuilt(tmp_path, caplog, name, damage):
    cfg = csv_config(tmp_path)
    first = load(cfg, tmp_path)
    path = cache_folder(tmp_path) / name
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    assert same(first, load(cfg, tmp_path))
    assert "is damaged" in caplog.text
    assert path.read_bytes()  # whole again, and nothing else beside it
    assert len(list(cache_folder(tmp_path).iterdir())) == 3


def test_cache_follows_settings_and_raw_files(tmp_path):
    load(csv_config(tmp_path), tmp_path)
    assert load(csv_config(tmp_path, min_user_inter=5), tmp_path).num_users == 1
    changed = load(csv_config(tmp_path, LOG + "3,3,3\n"), tmp_path)
    assert changed.num_users == 3


def test_another_process_that_was_first_is_no_problem(tmp_path, caplog, monkeypatch):
    cfg = csv_config(tmp_path)
    load(cfg, tmp_path)
    monkeypatch.setattr("src.core.data_utils._load_cache", lambda folder, logger: None)  # looked before it was there
    load(cfg, tmp_path)
    assert not caplog.records
    assert len(list((tmp_path / "data" / "processed" / "csv").iterdir())) == 1


def test_unwritable_cache_is_only_a_warning(tmp_path, caplog):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "processed").write_text("a file where the folder should be")
    assert load(csv_config(tmp_path), tmp_path).num_users == 2
    assert "could not keep the processed data" in caplog.text


# --- configuration ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "netflix"}, r"dataset\.name='netflix': must be one of sample, movielens"),
        ({"max_seq_len": 0}, r"dataset\.max_seq_len=0: must be an integer >= 1"),
        ({"min_user_inter": 2}, r"dataset\.min_user_inter=2: must be an integer >= 3"),
        ({"max_train_rows": 0}, r"dataset\.max_train_rows=0: must be null or an integer >= 1"),
        ({"raw_dir": ""}, r"dataset\.raw_dir='': must be null or a folder"),
        ({"version": "100k"}, r"dataset\.version='100k': must be null, because only movielens has it"),
        ({"separator": ","}, r"dataset\.separator=',': must be null, because only csv has it"),
        (
            {"interactions_file": "a"},
            r"dataset\.interactions_file='a': must be null, because only csv has it",
        ),
        ({"titles_file": "a"}, r"dataset\.titles_file='a': must be null, because only csv has it"),
        ({"columns": CsvColumns()}, r"dataset\.columns=.*: must be null, because only csv has it"),
        ({"name": "movielens", "version": "10m"}, r"dataset\.version='10m': must be one of 100k, 1m"),
        (
            {"split": SplitConfig("given")},
            r"dataset\.split\.method='given': must be leave_one_out or temporal, because sample does not come split",
        ),
        (
            {"name": "lastfm"},
            r"dataset\.split\.method='leave_one_out': must be given, because lastfm comes split",
        ),
        ({"name": "lastfm", "split": SplitConfig("given")}, r"dataset\.min_user_inter=5: .*must be 0"),
        ({"name": "csv", "separator": "::"}, r"dataset\.separator='::': must be one character"),
        ({"name": "csv", "titles_file": ""}, r"dataset\.titles_file='': must be the name of a file"),
    ],
)
def test_settings_that_are_wrong_or_without_effect_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        DatasetConfig(**{"name": "sample", **changes})


def test_unknown_split_and_equal_columns_are_refused():
    with pytest.raises(UserError, match=r"dataset\.split\.method='random': must be one of leave_one_out"):
        SplitConfig("random")
    with pytest.raises(UserError, match=r"dataset\.columns\.user='': must be the name of a column"):
        CsvColumns(user="")
    with pytest.raises(UserError, match=r"dataset\.columns=.*user, item and timestamp must differ"):
        CsvColumns(user="item")


def test_defaults_of_optional_fields():
    cfg = DatasetConfig("csv", separator="\\t")
    assert (cfg.interactions_file, cfg.titles_file, cfg.separator) == ("interactions.csv", "items.csv", "\t")
    assert cfg.columns == CsvColumns()
    assert DatasetConfig("movielens").version == "100k"


@pytest.mark.parametrize("path", sorted((ROOT / "conf" / "dataset").glob("*.yaml")), ids=lambda path: path.stem)
def test_yaml_files_fit_the_schema(path):
    merged = OmegaConf.merge(OmegaConf.structured(DatasetConfig), OmegaConf.load(path))
    cfg = OmegaConf.to_object(merged)
    assert isinstance(cfg, DatasetConfig) and isinstance(cfg.split, SplitConfig)
    assert cfg.name == path.stem


def test_movielens_yaml_has_the_keys_of_the_specification():
    cfg = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "dataset" / "movielens.yaml"))
    expected = {
        "name": "movielens",
        "max_seq_len": 50,
        "min_user_inter": 5,
        "split": {"method": "leave_one_out"},
    }
    assert {key: cfg[key] for key in expected} == expected


# --- the committed sample -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> SequenceDataset:
    cfg = DatasetConfig("sample", max_seq_len=20, raw_dir=str(ROOT / "data" / "raw" / "sample"))
    return load_dataset(cfg, tmp_path_factory.mktemp("sample"), LOGGER)


def test_sample_sizes_and_titles(sample):
    assert (sample.num_users, sample.num_items) == (300, 200)
    assert len(sample.train) + 2 * 300 + 300 == 8377  # a row for each interaction but the first of each user
    assert len(set(sample.titles)) == 200 and "The Silver Harbor" in sample.titles


def test_sample_has_sequential_structure(sample):
    """What follows the last item says far more than what is popular."""
    transitions = np.zeros((sample.num_items, sample.num_items))
    np.add.at(transitions, (sample.train.items[sample.train.pos - 1], sample.train.targets), 1)
    popularity = np.bincount(sample.train.targets, minlength=sample.num_items) / 1e6
    last = sample.test.items[sample.test.pos - 1]

    def hit_ratio(scores: np.ndarray) -> float:
        target = scores[np.arange(len(scores)), sample.test.targets]
        return float(((scores > target[:, None]).sum(axis=1) < 10).mean())

    assert hit_ratio(np.tile(popularity, (300, 1))) < 0.15
    assert hit_ratio(transitions[last] + popularity) > 0.45


def test_rows_are_immutable(sample):
    with pytest.raises(AttributeError):
        sample.train.items = sample.train.pos
    assert replace(sample, max_seq_len=3).max_seq_len == 3
