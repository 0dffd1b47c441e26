"""Raw interactions to numbered items, split prediction rows and a cache of both."""

import csv
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from src.core import raw_data
from src.core.errors import UserError, check
from src.core.foreign.arrays import read_arrays
from src.core.raw_data import Interactions, WindowSplits

DATASETS = ("sample", "movielens", "amazon_games", "lastfm", "csv")
MIN_INTERACTIONS = 3  # a training, a validation and a test target are too many for fewer
# Part of the cache key: raise it when the same raw files give another result.
_PROCESSING_VERSION = 1
# Of dataset.max_train_rows: not the run's, so that teacher rows stay valid for another run.
_SAMPLE_SEED = 0


# --- configuration ------------------------------------------------------------------------------------------


@dataclass
class SplitConfig:
    """How rows are split: ``leave_one_out``, ``temporal``, or ``given`` for data that come split."""

    method: str = "leave_one_out"

    def __post_init__(self) -> None:
        allowed = ("leave_one_out", "temporal", "given")
        check(
            self.method in allowed,
            "dataset.split.method",
            self.method,
            f"one of {', '.join(allowed)}",
        )


@dataclass
class CsvColumns:
    """Names of the columns of a csv data set."""

    user: str = "user"
    item: str = "item"
    timestamp: str = "timestamp"
    title: str = "title"

    def __post_init__(self) -> None:
        for key, value in vars(self).items():
            check(value != "", f"dataset.columns.{key}", value, "the name of a column")
        log_columns = [self.user, self.item, self.timestamp]
        check(len(set(log_columns)) == 3, "dataset.columns", log_columns, "user, item and timestamp must differ")


@dataclass
class DatasetConfig:
    """What ``load_dataset`` reads and how it splits it.

    Attributes:
        name: one of ``DATASETS``.
        max_seq_len: window of a row; the last items count.
        min_user_inter: users with fewer interactions are dropped (0 for lastfm, which has no users).
        split: see ``SplitConfig``.
        raw_dir: folder of the raw files; None is ``<data_dir>/raw/<name>``.
        max_train_rows: size of a fixed random sample of the training rows; None is all.
        version: movielens only: "100k" (default) or "1m".
        interactions_file, titles_file: csv only: file names in the raw folder.
        separator: csv only: one character (default comma).
        columns: csv only.

    Raises:
        UserError: for a value out of range, or one that the data set has no use for.
    """

    name: str
    max_seq_len: int = 50
    min_user_inter: int = 5
    split: SplitConfig = field(default_factory=SplitConfig)
    raw_dir: str | None = None
    max_train_rows: int | None = None
    version: str | None = None
    interactions_file: str | None = None
    titles_file: str | None = None
    separator: str | None = None
    columns: CsvColumns | None = None

    def __post_init__(self) -> None:
        check(self.name in DATASETS, "dataset.name", self.name, f"one of {', '.join(DATASETS)}")
        check(self.max_seq_len >= 1, "dataset.max_seq_len", self.max_seq_len, "an integer >= 1")
        rows = self.max_train_rows
        check(rows is None or rows >= 1, "dataset.max_train_rows", rows, "null or an integer >= 1")
        check(self.raw_dir != "", "dataset.raw_dir", self.raw_dir, "null or a folder")
        self._check_split()
        self._check_version()
        self._check_csv()

    def _check_split(self) -> None:
        method, minimum = self.split.method, self.min_user_inter
        if self.name == "lastfm":
            check(method == "given", "dataset.split.method", method, "given, because lastfm comes split")
            check(minimum == 0, "dataset.min_user_inter", minimum, "0, because lastfm has no users to drop")
            return
        check(
            method != "given",
            "dataset.split.method",
            method,
            f"leave_one_out or temporal, because {self.name} does not come split",
        )
        check(
            minimum >= MIN_INTERACTIONS,
            "dataset.min_user_inter",
            minimum,
            f"an integer >= {MIN_INTERACTIONS} (one item each to train, validate and test)",
        )

    def _check_version(self) -> None:
        if self.name == "movielens":
            self.version = "100k" if self.version is None else self.version
            allowed = ", ".join(raw_data.MOVIELENS)
            check(
                self.version in raw_data.MOVIELENS,
                "dataset.version",
                self.version,
                f"one of {allowed}",
            )
        else:
            check(self.version is None, "dataset.version", self.version, "null, because only movielens has it")

    def _check_csv(self) -> None:
        defaults: dict[str, Callable[[], Any]] = {
            "interactions_file": lambda: "interactions.csv",
            "titles_file": lambda: "items.csv",
            "separator": lambda: ",",
            "columns": CsvColumns,
        }
        for key, default in defaults.items():
            value = getattr(self, key)
            if self.name != "csv":
                check(value is None, f"dataset.{key}", value, "null, because only csv has it")
            elif value is None:
                setattr(self, key, default())
        if self.name != "csv":
            return
        for key in ("interactions_file", "titles_file"):
            check(getattr(self, key) != "", f"dataset.{key}", "", "the name of a file")
        if self.separator == "\\t":  # a shell and Hydra pass the two characters on
            self.separator = "\t"
        usable = len(self.separator) == 1 and self.separator not in "\r\n\"'" and not self.separator.isalnum()
        check(usable, "dataset.separator", self.separator, 'one character such as "," or "\\t"')


# --- the data set -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """Prediction rows: (history, target) pairs that point into one flat item array.

    Row i has the history ``items[start[i]:pos[i]]`` and the target ``items[pos[i]]``.

    Attributes:
        items: int32 [T], shared by all splits.
        start: int64 [N].
        pos: int64 [N]; pos > start: no history is empty.
        user: int32 [N]; for lastfm, which has no users, each row is a user of its own.
    """

    items: np.ndarray
    start: np.ndarray
    pos: np.ndarray
    user: np.ndarray

    def __len__(self) -> int:
        return len(self.pos)

    @property
    def targets(self) -> np.ndarray:
        """Target of each row, int64 [N]."""
        return self.items[self.pos].astype(np.int64)

    def select(self, index: np.ndarray) -> "Rows":
        """The rows at ``index`` (int [M] or bool [N]), in its order."""
        return Rows(self.items, self.start[index], self.pos[index], self.user[index])

    def history(self, i: int) -> np.ndarray:
        """Whole, unpadded history of row i, int64 [L]."""
        return self.items[self.start[i] : self.pos[i]].astype(np.int64)

    def windows(
        self,
        max_len: int,
        pad_id: int,
        index: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Histories cut to their last ``max_len`` items and right-padded.

        Args:
            max_len: width of the window.
            pad_id: what stands behind a shorter history.
            index: rows to take, int [B]; None is all.

        Returns:
            history int64 [B, max_len], length int64 [B], target int64 [B].
        """
        start, pos = (self.start, self.pos) if index is None else (self.start[index], self.pos[index])
        length = np.minimum(pos - start, max_len)
        offset = np.arange(max_len)
        # Places behind a history are clipped to its target, a valid address, and then overwritten.
        place = np.minimum((pos - length)[:, None] + offset, pos[:, None])  # [B, max_len]
        history = np.where(offset < length[:, None], self.items[place], pad_id)
        return history.astype(np.int64), length, self.items[pos].astype(np.int64)


@dataclass(frozen=True)
class SequenceDataset:
    """Items 0..num_items-1 with titles, and the rows of the three splits.

    Attributes:
        titles: title of each item, all different.
        item_ids: raw id of each item.
        max_seq_len: window of a row.
        fingerprint: sha256 over users, items, titles, split and row order; another ``max_seq_len`` or another
            folder of the same data has the same.
    """

    name: str
    num_items: int
    num_users: int
    titles: list[str]
    item_ids: list[str]
    max_seq_len: int
    train: Rows
    valid: Rows
    test: Rows
    fingerprint: str

    @property
    def pad_id(self) -> int:
        """The padding id, ``num_items``."""
        return self.num_items


@dataclass(frozen=True)
class _Processed:
    """What the cache holds: all of a data set but its window."""

    num_users: int
    titles: list[str]
    item_ids: list[str]
    train: Rows
    valid: Rows
    test: Rows

    @property
    def splits(self) -> dict[str, Rows]:
        return {"train": self.train, "valid": self.valid, "test": self.test}

    def fingerprint(self) -> str:
        """sha256, hexadecimal; every part is preceded by its length, so that no two data sets read alike."""
        digest = hashlib.sha256()

        def add(part: bytes) -> None:
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)

        add(str(self.num_users).encode())
        add(json.dumps([self.item_ids, self.titles]).encode())
        add(self.train.items.astype("<i4").tobytes())
        for rows in self.splits.values():
            add(rows.start.astype("<i8").tobytes())
            add(rows.pos.astype("<i8").tobytes())
            add(rows.user.astype("<i4").tobytes())
        return digest.hexdigest()


def load_dataset(cfg: DatasetConfig, data_dir: Path, logger: logging.Logger) -> SequenceDataset:
    """Reads, processes and splits a data set, or loads what an identical earlier call made.

    Args:
        cfg: the data set.
        data_dir: holds ``raw/<name>`` (unless ``cfg.raw_dir`` is given) and the cache,
            ``processed/<name>/<key>``.
        logger: gets what was dropped or renamed, and one line of sizes.

    Raises:
        UserError: for missing or damaged files, or when no user is left.
    """
    raw_dir = Path(cfg.raw_dir) if cfg.raw_dir is not None else Path(data_dir) / "raw" / cfg.name
    files = _find_raw_files(cfg, raw_dir, logger)
    folder = Path(data_dir) / "processed" / cfg.name / _cache_key(cfg, raw_dir, files)
    processed = _load_cache(folder, logger)
    if processed is None:
        processed = _process(cfg, raw_dir, logger)
        _save_cache(processed, folder, logger)
    dataset = SequenceDataset(
        name=cfg.name,
        num_items=len(processed.titles),
        num_users=processed.num_users,
        titles=processed.titles,
        item_ids=processed.item_ids,
        max_seq_len=cfg.max_seq_len,
        **processed.splits,
        fingerprint=processed.fingerprint(),
    )
    logger.info(
        "dataset %s: %d users, %d items, rows: %d train, %d valid, %d test (fingerprint %s)",
        cfg.name,
        dataset.num_users,
        dataset.num_items,
        len(dataset.train),
        len(dataset.valid),
        len(dataset.test),
        dataset.fingerprint[:12],
    )
    return dataset


# --- raw files to rows --------------------------------------------------------------------------------------


def _raw_files(cfg: DatasetConfig, raw_dir: Path) -> list[Path]:
    if cfg.name == "movielens":
        return raw_data.movielens_files(raw_dir, cfg.version)
    if cfg.name == "amazon_games":
        return raw_data.amazon_files(raw_dir)
    if cfg.name == "lastfm":
        return raw_data.lastfm_files(raw_dir)
    if cfg.name == "csv":
        return [raw_dir / cfg.interactions_file, raw_dir / cfg.titles_file]
    return [raw_dir / "interactions.csv", raw_dir / "items.csv"]


def _find_raw_files(cfg: DatasetConfig, raw_dir: Path, logger: logging.Logger) -> list[Path]:
    """The raw files, fetched where they are missing from the default folder and have a public source."""
    files = _raw_files(cfg, raw_dir)
    if cfg.name == "movielens" and cfg.raw_dir is None and not all(path.is_file() for path in files):
        raw_data.fetch_movielens(raw_dir, cfg.version, logger)
    given = f"dataset.raw_dir={cfg.raw_dir!r} must hold them"
    raw_data.require_files(files, given if cfg.raw_dir else "put them there, or set dataset.raw_dir to their folder")
    return files


def _process(cfg: DatasetConfig, raw_dir: Path, logger: logging.Logger) -> _Processed:
    if cfg.name == "lastfm":
        processed = _from_windows(raw_data.read_lastfm(raw_dir), logger)
    else:
        processed = _from_interactions(cfg, _read_interactions(cfg, raw_dir), logger)
    if cfg.max_train_rows is None:
        return processed
    train = _sample_rows(processed.train, cfg.max_train_rows)
    logger.info("dataset.max_train_rows=%d: %d of %d rows", cfg.max_train_rows, len(train), len(processed.train))
    return _Processed(**{**vars(processed), "train": train})


def _read_interactions(cfg: DatasetConfig, raw_dir: Path) -> Interactions:
    if cfg.name == "movielens":
        return raw_data.read_movielens(raw_dir, cfg.version)
    if cfg.name == "amazon_games":
        return raw_data.read_amazon_games(raw_dir)
    columns = cfg.columns or CsvColumns()
    return raw_data.read_csv(*_raw_files(cfg, raw_dir), separator=cfg.separator or ",", **vars(columns))


def _from_interactions(cfg: DatasetConfig, log: Interactions, logger: logging.Logger) -> _Processed:
    log = _drop_short_users(log, cfg.min_user_inter, logger)
    user, user_ids = number_ids(log.users)
    item, item_ids = number_ids(log.items)
    # By user, then time; lexsort is stable, so that ties in time keep the order of the file.
    order = np.lexsort((log.timestamps, user))
    items = item[order].astype(np.int32)
    counts = np.bincount(user, minlength=len(user_ids))
    if cfg.split.method == "temporal":
        train, valid, test = _split_temporal(items, counts, log.timestamps[order])
    else:
        train, valid, test = _split_leave_one_out(items, counts)
    titles = make_titles([log.titles.get(raw, "") for raw in item_ids], item_ids, logger)
    return _Processed(len(user_ids), titles, item_ids, train, valid, test)


def _drop_short_users(log: Interactions, min_user_inter: int, logger: logging.Logger) -> Interactions:
    codes, uniques = pd.factorize(log.users)
    counts = np.bincount(codes, minlength=len(uniques))
    short = counts < min_user_inter
    if short.all():
        raise UserError(
            f"dataset.min_user_inter={min_user_inter}: no user is left, the most active of {len(uniques)} "
            f"has {counts.max()} interactions; lower it (at least {MIN_INTERACTIONS}) or add data"
        )
    if short.any():
        logger.info(
            "dropped %d of %d users with fewer than %d interactions",
            short.sum(),
            len(uniques),
            min_user_inter,
        )
    keep = ~short[codes]
    return Interactions(log.users[keep], log.items[keep], log.timestamps[keep], log.titles)


def number_ids(raw: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Numbers raw ids 0..n-1 in their order: by value if all are decimal numbers, else as text.

    Args:
        raw: int64 or object (str) [N].

    Returns:
        codes int64 [N], and the raw id of each code as text.
    """
    codes, uniques = pd.factorize(raw)
    ids = [str(value) for value in uniques]
    numeric = all(value.isascii() and value.isdecimal() for value in ids)
    order = sorted(range(len(ids)), key=lambda i: (int(ids[i]) if numeric else 0, ids[i]))
    rank = np.empty(len(ids), dtype=np.int64)
    rank[order] = np.arange(len(ids))
    return rank[codes], [ids[i] for i in order]


def _rows_of_users(items: np.ndarray, counts: np.ndarray) -> Rows:
    """A row for every interaction of every user, the first ones (with an empty history) included."""
    user = np.repeat(np.arange(len(counts)), counts)
    first = np.cumsum(counts) - counts
    return Rows(items, first[user], np.arange(len(items)), user.astype(np.int32))


def _split_leave_one_out(items: np.ndarray, counts: np.ndarray) -> tuple[Rows, Rows, Rows]:
    """By user: last item = test target, second last = validation target, second to third last = training."""
    rows = _rows_of_users(items, counts)
    end = np.cumsum(counts)
    left = end[rows.user] - rows.pos  # 1 at a user's last item
    return rows.select((left > 2) & (rows.pos > rows.start)), rows.select(left == 2), rows.select(left == 1)


def _split_temporal(items: np.ndarray, counts: np.ndarray, times: np.ndarray) -> tuple[Rows, Rows, Rows]:
    """All rows by the time of their target (ties: by user, then position), cut 8:1:1."""
    rows = _rows_of_users(items, counts)
    rows = rows.select(rows.pos > rows.start)
    rows = rows.select(np.argsort(times[rows.pos], kind="stable"))
    first, second = len(rows) * 8 // 10, len(rows) * 9 // 10
    if not 0 < first < second < len(rows):
        raise UserError(
            f"dataset.split.method='temporal': {len(rows)} (history, target) pairs cannot be split 8:1:1; "
            "add data or use leave_one_out"
        )
    index = np.arange(len(rows))
    return rows.select(index[:first]), rows.select(index[first:second]), rows.select(index[second:])


def _from_windows(splits: WindowSplits, logger: logging.Logger) -> _Processed:
    tables = [splits.train, splits.valid, splits.test]
    flat: list[np.ndarray] = []
    rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    num_items, num_rows = 0, 0
    for table in tables:
        # Each row takes its history and its target, one behind the other.
        sequence = np.concatenate([table.history, table.target[:, None]], axis=1)
        width = table.history.shape[1]
        keep = np.arange(width + 1) < table.length[:, None]
        keep[:, width] = True
        flat.append(sequence[keep].astype(np.int32))
        pos = num_items + np.cumsum(table.length + 1) - 1
        rows.append((pos - table.length, pos, np.arange(num_rows, num_rows + len(pos), dtype=np.int32)))
        num_items, num_rows = num_items + len(flat[-1]), num_rows + len(pos)
    items = np.concatenate(flat)
    item_ids = [str(item) for item in range(len(splits.titles))]
    titles = make_titles(splits.titles, item_ids, logger)
    train, valid, test = (Rows(items, *parts) for parts in rows)
    return _Processed(num_rows, titles, item_ids, train, valid, test)


def _sample_rows(rows: Rows, size: int) -> Rows:
    """A fixed random sample of ``size`` rows, in their order; all rows if there are no more."""
    # RandomState: its stream is frozen across NumPy versions, that of default_rng is not.
    chosen = np.random.RandomState(_SAMPLE_SEED).permutation(len(rows))[:size]
    return rows.select(np.sort(chosen))


def make_titles(raw_titles: list[str], item_ids: list[str], logger: logging.Logger) -> list[str]:
    """Cleans titles: one line each, none empty, all different (ignoring case, as answers are matched).

    A missing title becomes "item <raw id>"; a title that occurs again gets " (2)", " (3)", ... in item order.
    """
    titles = [re.sub(r"\s+", " ", title).strip() for title in raw_titles]
    missing = sum(not title for title in titles)
    if missing:
        logger.warning('%d of %d items have no title: named "item <id>"', missing, len(titles))
    titles = [title or f"item {raw}" for title, raw in zip(titles, item_ids, strict=True)]
    taken = {title.casefold() for title in titles}
    seen: set[str] = set()
    repeated = 0
    for i, title in enumerate(titles):
        if title.casefold() in seen:
            repeated += 1
            titles[i] = _free_title(title, taken)
            taken.add(titles[i].casefold())
        seen.add(title.casefold())
    if repeated:
        logger.info('%d of %d titles occurred before: made distinct by " (2)" and so on', repeated, len(titles))
    return titles


def _free_title(title: str, taken: set[str]) -> str:
    number = 2
    while f"{title} ({number})".casefold() in taken:
        number += 1
    return f"{title} ({number})"


# --- cache --------------------------------------------------------------------------------------------------


def _cache_key(cfg: DatasetConfig, raw_dir: Path, files: list[Path]) -> str:
    """Short hash of what the processed data depend on: code version, settings, state of the raw files."""
    settings = {
        "processing": _PROCESSING_VERSION,
        "split": cfg.split.method,
        "min_user_inter": cfg.min_user_inter,
        "max_train_rows": cfg.max_train_rows,
        "version": cfg.version,
        "separator": cfg.separator,
        "columns": vars(cfg.columns) if cfg.columns else None,
        "folder": str(raw_dir.resolve()),
        "files": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files],
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _save_cache(processed: _Processed, folder: Path, logger: logging.Logger) -> None:
    """Writes the folder under another name and renames it, so that it appears whole or not at all."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        arrays = {"items": processed.train.items}
        for name, rows in processed.splits.items():
            arrays |= {f"{name}_start": rows.start, f"{name}_pos": rows.pos, f"{name}_user": rows.user}
        np.savez(temporary / "rows.npz", **arrays)
        with (temporary / "items.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["item", "raw_id", "title"])
            writer.writerows(zip(range(len(processed.titles)), processed.item_ids, processed.titles, strict=True))
        meta = {"num_users": processed.num_users, "fingerprint": processed.fingerprint()}
        (temporary / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
        os.replace(temporary, folder)
    except OSError as error:
        # The data are in memory all the same. Where the folder exists, another process made it first.
        if not folder.is_dir():
            logger.warning("could not keep the processed data in %s: %s", folder, error)
        shutil.rmtree(temporary, ignore_errors=True)


def _load_cache(folder: Path, logger: logging.Logger) -> _Processed | None:
    """What ``_save_cache`` wrote; None if there is none or it is damaged."""
    if not folder.is_dir():
        return None
    try:
        meta = json.loads((folder / "meta.json").read_text())
        with (folder / "items.csv").open(newline="", encoding="utf-8") as file:
            table = list(csv.reader(file))[1:]
        arrays = read_arrays(folder / "rows.npz", max_bytes=None, advice="it is made again")
        splits = {
            name: Rows(arrays["items"], *(arrays[f"{name}_{part}"] for part in ("start", "pos", "user")))
            for name in ("train", "valid", "test")
        }
        processed = _Processed(
            meta["num_users"], titles=[row[2] for row in table], item_ids=[row[1] for row in table], **splits
        )
        if processed.fingerprint() != meta["fingerprint"]:
            raise ValueError("its fingerprint differs")
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        UserError,
        csv.Error,
    ) as error:
        logger.warning("%s is damaged (%s): processing the raw files again", folder, error)
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return processed
