"""Raw data to processed data to split rows: what `load_dataset` does, in the order of this file."""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from src.core.datasets.base import GIVEN_SPLIT, MIN_INTERACTIONS, DatasetConfig, Interactions, Windows, WindowSplits
from src.core.datasets.cache import SPLITS, Processed, load_or_make
from src.core.datasets.sources import SOURCES, find_raw_files
from src.core.errors import UserError
from src.core.files import Sighting
from src.core.paths import project_path
from src.core.settings import flat_settings

# Part of what processed data are made from: raise it when the same raw files give another result.
_PROCESSING_VERSION = 1
# Of dataset.max_train_rows: not the run's, so that teacher rows stay valid for another run.
_SAMPLE_SEED = 0


@dataclass(frozen=True)
class Rows:
    """Prediction rows: (history, target) pairs that point into one flat item array.

    Row i has the history `items[start[i]:pos[i]]` and the target `items[pos[i]]`.

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
        """The rows at `index` (int [M] or bool [N]), in its order."""
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
        """Histories cut to their last `max_len` items and right-padded.

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
        fingerprint: sha256 over users, items, titles, split and row order; another `max_seq_len` or another
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
        """The padding id, `num_items`."""
        return self.num_items


def load_dataset(config: DatasetConfig, data_dir: Path, logger: logging.Logger) -> SequenceDataset:
    """Read, process and split a data set, or load what an identical earlier call made.

    Args:
        config: the data set, of a class in `src.core.datasets.sources.SCHEMAS`.
        data_dir: holds `raw/<name>` (unless `config.raw_dir` is given) and the cache, `processed/<name>/<key>`.
        logger: gets what was dropped or renamed, and one line of sizes.

    Raises:
        UserError: for missing or damaged files, or when no user is left.
    """
    source = SOURCES[config.source]
    raw_dir = Path(data_dir) / "raw" / config.name if config.raw_dir is None else project_path(config.raw_dir)
    files = find_raw_files(source, config, raw_dir, logger=logger)
    before = Sighting.of(*files)

    def process() -> Processed:
        raw = source.read(config, raw_dir)
        before.require_same()  # else it would be kept as what the files were at first
        return _process(raw, config, logger)

    processed = load_or_make(
        Path(data_dir) / "processed" / config.name,
        _made_from(config, raw_dir, files),
        process,
        logger=logger,
    )
    train, valid, test = (Rows(processed.items, *processed.rows[split]) for split in SPLITS)
    dataset = SequenceDataset(
        name=config.name,
        num_items=len(processed.titles),
        num_users=processed.num_users,
        titles=processed.titles,
        item_ids=processed.item_ids,
        max_seq_len=config.max_seq_len,
        train=train,
        valid=valid,
        test=test,
        fingerprint=processed.fingerprint(),
    )
    logger.info(
        f"dataset {dataset.name}: {dataset.num_users} users, {dataset.num_items} items, rows: {len(train)} train, "
        f"{len(valid)} valid, {len(test)} test (fingerprint {dataset.fingerprint[:12]})"
    )
    return dataset


def _made_from(config: DatasetConfig, raw_dir: Path, files: list[Path]) -> dict[str, Any]:
    """All that decides the processed data: this code's version, the settings but the window, the raw files' state."""
    settings = flat_settings(config, "dataset")
    del settings["dataset.max_seq_len"]  # windows are cut when rows are read
    state = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
    return {"processing version": _PROCESSING_VERSION, **settings, "raw folder": str(raw_dir.resolve()), **state}


# --- raw data to processed data -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Log:
    """A numbered log, by user, then time.

    items int32 [T], times [T], counts int64 [num_users]: interactions of each user.
    """

    items: np.ndarray
    times: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True, kw_only=True)
class _Numbered:
    """Raw data with numbered items and split rows: `rows` are of training, validation and test."""

    num_users: int
    item_ids: list[str]
    raw_titles: list[str]
    rows: tuple[Rows, Rows, Rows]


def _process(raw: Interactions | WindowSplits, config: DatasetConfig, logger: logging.Logger) -> Processed:
    """Number the items, split the rows, name the items, and sample the training rows."""
    for note in raw.notes:
        logger.info(note)
    numbered = _NUMBER_AND_SPLIT[config.split.method](raw, config, logger)
    titles = make_titles(numbered.raw_titles, numbered.item_ids, logger)
    train, valid, test = numbered.rows
    if config.max_train_rows is not None:
        num_rows, train = len(train), sample_rows(train, config.max_train_rows)
        logger.info("dataset.max_train_rows=%d: %d of %d rows", config.max_train_rows, len(train), num_rows)
    return Processed(
        num_users=numbered.num_users,
        item_ids=numbered.item_ids,
        titles=titles,
        items=train.items,
        rows={split: (r.start, r.pos, r.user) for split, r in zip(SPLITS, (train, valid, test), strict=True)},
    )


def _number_log(
    split: Callable[[_Log], tuple[Rows, Rows, Rows]], raw: Interactions, config: DatasetConfig, logger: logging.Logger
) -> _Numbered:
    raw = _drop_short_users(raw, config.min_user_inter, logger)
    user, user_ids = number_ids(raw.users)
    item, item_ids = number_ids(raw.items)
    # By user, then time; lexsort is stable, so that ties in time keep the order of the file.
    order = np.lexsort((raw.timestamps, user))
    log = _Log(
        items=item[order].astype(np.int32),
        times=raw.timestamps[order],
        counts=np.bincount(user, minlength=len(user_ids)),
    )
    raw_titles = [raw.titles.get(raw_id, "") for raw_id in item_ids]
    return _Numbered(num_users=len(user_ids), item_ids=item_ids, raw_titles=raw_titles, rows=split(log))


def _number_windows(raw: WindowSplits, config: DatasetConfig, logger: logging.Logger) -> _Numbered:
    train, valid, test = _joined([_rows_of_windows(windows) for windows in (raw.train, raw.valid, raw.test)])
    return _Numbered(
        num_users=len(train) + len(valid) + len(test),
        item_ids=[str(item) for item in range(len(raw.titles))],
        raw_titles=raw.titles,
        rows=(train, valid, test),
    )


def _drop_short_users(log: Interactions, min_user_inter: int, logger: logging.Logger) -> Interactions:
    codes, uniques = _factorize(log.users)
    counts = np.bincount(codes, minlength=len(uniques))
    short = counts < min_user_inter
    if short.all():
        raise UserError(
            f"dataset.min_user_inter={min_user_inter}: no user is left, the most active of {len(uniques)} "
            f"has {counts.max()} interactions; lower it (at least {MIN_INTERACTIONS}) or add data"
        )
    if short.any():
        logger.info("dropped %d of %d users with fewer than %d interactions", short.sum(), len(uniques), min_user_inter)
    keep = ~short[codes]
    return replace(log, users=log.users[keep], items=log.items[keep], timestamps=log.timestamps[keep])


def number_ids(raw: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Number raw ids 0..n-1 in their order: by value if all are decimal numbers, else as text.

    Args:
        raw: int64 or object (str) [N].

    Returns:
        codes int64 [N], and the raw id of each code as text.
    """
    codes, uniques = _factorize(raw)
    ids = [str(value) for value in uniques]
    numeric = all(value.isascii() and value.isdecimal() for value in ids)
    order = sorted(range(len(ids)), key=lambda i: (int(ids[i]) if numeric else 0, ids[i]))
    rank = np.empty(len(ids), dtype=np.int64)
    rank[order] = np.arange(len(ids))
    return rank[codes], [ids[i] for i in order]


def _factorize(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes int64 [N] of the values in the order of their first occurrence, and the values [n]."""
    import pandas as pd  # a second that only raw data cost, not what was processed before

    codes, uniques = pd.factorize(values)
    return codes, uniques


# --- split --------------------------------------------------------------------------------------------------


def _rows_of_users(log: _Log) -> Rows:
    """A row for every interaction of every user, the first ones (with an empty history) included."""
    user = np.repeat(np.arange(len(log.counts)), log.counts)
    first = np.cumsum(log.counts) - log.counts
    return Rows(log.items, first[user], np.arange(len(log.items)), user.astype(np.int32))


def _split_leave_one_out(log: _Log) -> tuple[Rows, Rows, Rows]:
    """By user: last item = test target, second last = validation target, second to third last = training."""
    rows = _rows_of_users(log)
    end = np.cumsum(log.counts)
    left = end[rows.user] - rows.pos  # 1 at a user's last item
    return rows.select((left > 2) & (rows.pos > rows.start)), rows.select(left == 2), rows.select(left == 1)


def _split_temporal(log: _Log) -> tuple[Rows, Rows, Rows]:
    """All rows by the time of their target (ties: by user, then position), cut 8:1:1."""
    rows = _rows_of_users(log)
    rows = rows.select(rows.pos > rows.start)
    rows = rows.select(np.argsort(log.times[rows.pos], kind="stable"))
    first, second = len(rows) * 8 // 10, len(rows) * 9 // 10
    if not 0 < first < second < len(rows):
        raise UserError(
            f"dataset.split.method='temporal': {len(rows)} (history, target) pairs cannot be split 8:1:1; "
            "add data or use leave_one_out"
        )
    index = np.arange(len(rows))
    return rows.select(index[:first]), rows.select(index[first:second]), rows.select(index[second:])


def _rows_of_windows(windows: Windows) -> Rows:
    """Each window's history and target, one behind the other; each is a user of its own."""
    width = windows.history.shape[1]
    sequence = np.concatenate([windows.history, windows.target[:, None]], axis=1)  # [N, L + 1]
    is_item = np.arange(width + 1) < windows.length[:, None]
    is_item[:, width] = True
    pos = np.cumsum(windows.length + 1) - 1
    user = np.arange(len(pos), dtype=np.int32)
    return Rows(sequence[is_item].astype(np.int32), pos - windows.length, pos, user)


def _joined(parts: list[Rows]) -> list[Rows]:
    """The same rows over one item array, with users numbered on from part to part."""
    items = np.concatenate([rows.items for rows in parts])
    joined, first_item, first_user = [], 0, 0
    for rows in parts:
        joined.append(Rows(items, rows.start + first_item, rows.pos + first_item, rows.user + first_user))
        first_item, first_user = first_item + len(rows.items), first_user + len(rows)
    return joined


# By dataset.split.method, which the settings of a data set admit only where its raw data are of that kind.
_NUMBER_AND_SPLIT: dict[str, Callable[..., _Numbered]] = {
    "leave_one_out": partial(_number_log, _split_leave_one_out),
    "temporal": partial(_number_log, _split_temporal),
    GIVEN_SPLIT: _number_windows,
}


def sample_rows(rows: Rows, size: int) -> Rows:
    """A fixed random sample of `size` rows, in their order; all rows if there are no more."""
    # RandomState: its stream is frozen across NumPy versions, that of default_rng is not.
    chosen = np.random.RandomState(_SAMPLE_SEED).permutation(len(rows))[:size]
    return rows.select(np.sort(chosen))


# --- titles -------------------------------------------------------------------------------------------------


def make_titles(raw_titles: list[str], item_ids: list[str], logger: logging.Logger) -> list[str]:
    """Clean titles: one line each, none empty, all different (ignoring case, as answers are matched).

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
