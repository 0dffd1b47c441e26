"""Raw data to processed data to split rows: what `load_dataset` does, in the order of this file."""

import logging
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from src.core.datasets.base import (
    GIVEN_SPLIT,
    MIN_INTERACTIONS,
    DatasetConfig,
    Interactions,
    LogConfig,
    Windows,
    WindowSplits,
    likeness,
)
from src.core.datasets.cache import SPLITS, Processed, load_or_make
from src.core.datasets.sources import SOURCES, find_raw_files
from src.core.errors import UserError
from src.core.files import Sighting
from src.core.paths import project_path
from src.core.settings import flat_settings

# Part of what processed data are made from: raise it when the same raw files give another result.
_PROCESSING_VERSION = 2
_NO_IDS = {"", "nan", "none", "null", "<na>", "n/a", "undefined"}  # what programs write for a missing one
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
    _require_rows(dataset, config)
    logger.info(
        f"dataset {dataset.name}: {dataset.num_users} users, {dataset.num_items} items, rows: {len(train)} train, "
        f"{len(valid)} valid, {len(test)} test (fingerprint {dataset.fingerprint[:12]})"
    )
    return dataset


def _require_rows(dataset: SequenceDataset, config: DatasetConfig) -> None:
    """Refuse data without a row to train, validate or test on."""
    advice = {
        "leave_one_out": f"a user has a training row from {MIN_INTERACTIONS + 1} interactions on; add data",
        GIVEN_SPLIT: "the file of that part holds no history with an item; add some",
    }
    for name, rows in (("training", dataset.train), ("validation", dataset.valid), ("test", dataset.test)):
        if len(rows) == 0:
            raise UserError(f"dataset {dataset.name}: no {name} row; {advice.get(config.split.method, 'add data')}")


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
        logger.info("%s", note)
    for warning in raw.warnings:
        logger.warning("%s", warning)
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
    users, items = _Ids(*_factorize(raw.users)), _Ids(*_factorize(raw.items))
    for kind, ids in (("user", users), ("item", items)):
        _warn_of_doubtful_ids(kind, ids, logger)
    keep = _without_duplicates(users, items, raw.timestamps, config, logger)
    keep &= _of_long_users(users.codes, keep, config.min_user_inter, logger)
    user, user_ids = users.select(keep).in_order()
    item, item_ids = items.select(keep).in_order()
    times = raw.timestamps[keep]
    # By user, then time; lexsort is stable, so that ties in time keep the order of the file.
    order = np.lexsort((times, user))
    log = _Log(
        items=item[order].astype(np.int32),
        times=times[order],
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


@dataclass(frozen=True)
class _Ids:
    """A column of raw ids: codes int64 [N], and the raw ids [n] that they stand for, some of which may not occur."""

    codes: np.ndarray
    raw: np.ndarray

    def select(self, keep: np.ndarray) -> "_Ids":
        return _Ids(self.codes[keep], self.raw)

    def in_order(self) -> tuple[np.ndarray, list[str]]:
        """As `number_ids`, of the ids that occur."""
        occurring = np.flatnonzero(np.bincount(self.codes, minlength=len(self.raw)))
        ids = [str(value) for value in self.raw[occurring]]
        numeric = all(value.isascii() and value.isdecimal() for value in ids)
        order = sorted(range(len(ids)), key=lambda i: (int(ids[i]) if numeric else 0, ids[i]))
        rank = np.empty(len(self.raw), dtype=np.int64)
        rank[occurring[order]] = np.arange(len(ids))
        return rank[self.codes], [ids[i] for i in order]


def number_ids(raw: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Number raw ids 0..n-1 in their order: by value if all are decimal numbers, else as text.

    Args:
        raw: int64 or object (str) [N].

    Returns:
        codes int64 [N], and the raw id of each code as text.
    """
    return _Ids(*_factorize(raw)).in_order()


def _factorize(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes int64 [N] of the values in the order of their first occurrence, and the values [n]."""
    import pandas as pd  # a second that only raw data cost, not what was processed before

    codes, uniques = pd.factorize(values)
    return codes, uniques


def _warn_of_doubtful_ids(kind: str, ids: _Ids, logger: logging.Logger) -> None:
    """Warn of ids that may not mean what they say. They are kept as they are: only their owner can know.

    Args:
        kind: what the ids are of, `user` or `item`.
    """
    if ids.raw.dtype != object:  # numbers
        return
    first: dict[str, str] = {}  # by likeness
    alike, padded, nothing = [], [], []
    for code, raw_id in enumerate(ids.raw):
        if raw_id != raw_id.strip():
            padded.append(raw_id)
        if raw_id.strip().casefold() in _NO_IDS:
            nothing.append(code)
        if (other := first.setdefault(likeness(raw_id), raw_id)) != raw_id:
            alike.append((other, raw_id))
    if padded:
        logger.warning("%d %s ids have blanks at their ends, such as %r", len(padded), kind, padded[0])
    if alike:
        logger.warning(
            "%d %s ids differ from another one in blanks, case, a Unicode form or .0 alone, such as %r and %r: they "
            "are told apart",
            len(alike),
            kind,
            *alike[0],
        )
    for code in nothing:
        count = int((ids.codes == code).sum())
        logger.warning("%s %r is taken for an id and has %d interactions", kind, ids.raw[code], count)


def _without_duplicates(
    users: _Ids, items: _Ids, times: np.ndarray, config: DatasetConfig, logger: logging.Logger
) -> np.ndarray:
    """What is kept of exact repeats of user, item and time, bool [N]: the first of each, or all."""
    assert isinstance(config, LogConfig)
    again = _repeats(users, items, times)
    dropped = config.duplicates == "drop"
    if count := int(again.sum()):
        done = "dropped" if dropped else "kept"
        logger.warning("%s %d of %d interactions that repeat user, item and time exactly", done, count, len(again))
    return ~again if dropped else np.ones(len(again), dtype=bool)


def _repeats(users: _Ids, items: _Ids, times: np.ndarray) -> np.ndarray:
    """Which interactions have user, item and time of an earlier line: bool [N]."""
    import pandas as pd

    pair = users.codes * len(items.raw) + items.codes  # below 2**63, as there are at most 2**31 of each
    # Seldom any pair occurs again, and a hash table tells that sooner than sorting by time as well.
    index = np.flatnonzero(pd.Series(pair).duplicated(keep=False))
    again = np.zeros(len(pair), dtype=bool)
    again[index] = pd.DataFrame({"pair": pair[index], "time": times[index]}).duplicated()
    return again


def _of_long_users(users: np.ndarray, keep: np.ndarray, min_user_inter: int, logger: logging.Logger) -> np.ndarray:
    """Which interactions are of users with enough of those that are kept: bool [N]."""
    counts = np.bincount(users[keep], minlength=int(users.max()) + 1)
    short = counts < min_user_inter
    if short.all():
        raise UserError(
            f"dataset.min_user_inter={min_user_inter}: no user is left, the most active of {len(counts)} "
            f"has {counts.max()} interactions; lower it (at least {MIN_INTERACTIONS}) or add data"
        )
    if short.any():
        logger.info("dropped %d of %d users with fewer than %d interactions", short.sum(), len(counts), min_user_inter)
    return ~short[users]


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
    titles = [_one_line(title) for title in raw_titles]
    missing = sum(not title for title in titles)
    if missing:
        logger.warning('%d of %d items have no title: named "item <id>"', missing, len(titles))
    doubtful = [title for title in titles if title and title.casefold() in _NO_IDS]
    if doubtful:
        logger.warning("%d items have titles such as %r, which may stand for a missing one", len(doubtful), doubtful[0])
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


def _one_line(title: str) -> str:
    """A title with single blanks; "" for one of which nothing is to be seen, such as a zero-width space."""
    title = re.sub(r"\s+", " ", title).strip()
    is_seen = title.isascii() or any(unicodedata.category(character)[0] not in "CZ" for character in title)
    return title if is_seen else ""


def _free_title(title: str, taken: set[str]) -> str:
    number = 2
    while f"{title} ({number})".casefold() in taken:
        number += 1
    return f"{title} ({number})"
