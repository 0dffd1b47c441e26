"""Raw ids to numbers, a log in the order of its users, and its split into rows."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from src.core.datasets.base import (
    GIVEN_SPLIT,
    MIN_INTERACTIONS,
    NO_IDS,
    DatasetConfig,
    Ids,
    Interactions,
    LogConfig,
    Windows,
    WindowSplits,
    likeness,
)
from src.core.errors import UserError
from src.core.sequences.rows import Rows

# Interactions that are sorted at once: few enough for the processor's cache, which makes it faster than all together.
_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Numbered:
    """Raw data with numbered items and split rows: `rows` are of training, validation and test."""

    item_ids: list[str]
    raw_titles: list[str]
    rows: tuple[Rows, Rows, Rows]


def number_and_split(raw: Interactions | WindowSplits, config: DatasetConfig, logger: logging.Logger) -> Numbered:
    """Number users and items, and split the rows.

    Args:
        raw: of the kind that the settings of its data set admit for `config.split.method`.

    Raises:
        UserError: no user is left, or there are too few rows to split.
    """
    return _BY_METHOD[config.split.method](raw, config, logger)


# --- a log --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Log:
    """A numbered log, by user, then time.

    items int32 [T], times [T], bounds int64 [num_users + 1] as in `Rows`.
    """

    items: np.ndarray
    times: np.ndarray
    bounds: np.ndarray


def _number_log(
    split: Callable[[_Log], tuple[Rows, Rows, Rows]], raw: Interactions, config: DatasetConfig, logger: logging.Logger
) -> Numbered:
    for kind, ids in (("user", raw.users), ("item", raw.items)):
        _warn_of_doubtful_ids(kind, ids, logger)
    keep = _without_duplicates(raw, config, logger)
    keep &= _of_long_users(raw.users.codes, keep, config.min_user_inter, logger)
    user, user_ids = raw.users.select(keep).in_order()
    item, item_ids = raw.items.select(keep).in_order()
    log = _by_user_and_time(user, item, raw.timestamps[keep], num_users=len(user_ids))
    raw_titles = [raw.titles.get(raw_id, "") for raw_id in item_ids]
    return Numbered(item_ids=item_ids, raw_titles=raw_titles, rows=split(log))


def _warn_of_doubtful_ids(kind: str, ids: Ids, logger: logging.Logger) -> None:
    """Warn of ids that may not mean what they say. They are kept as they are: only their owner can know.

    Args:
        kind: what the ids are of, `user` or `item`.
    """
    if ids.values.dtype != object:  # numbers
        return
    first: dict[str, str] = {}  # by likeness
    alike, padded, nothing = [], [], []
    for code, raw_id in enumerate(ids.values):
        if raw_id != raw_id.strip():
            padded.append(raw_id)
        if raw_id.strip().casefold() in NO_IDS:
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
        logger.warning("%s %r is taken for an id and has %d interactions", kind, ids.values[code], count)


def _without_duplicates(raw: Interactions, config: DatasetConfig, logger: logging.Logger) -> np.ndarray:
    """What is kept of exact repeats of user, item and time, bool [N]: the first of each, or all."""
    assert isinstance(config, LogConfig)
    again = _repeats(raw)
    dropped = config.duplicates == "drop"
    if count := int(again.sum()):
        done = "dropped" if dropped else "kept"
        logger.warning("%s %d of %d interactions that repeat user, item and time exactly", done, count, len(again))
    return ~again if dropped else np.ones(len(again), dtype=bool)


def _repeats(raw: Interactions) -> np.ndarray:
    """Which interactions have user, item and time of an earlier line: bool [N]."""
    import pandas as pd

    again = np.zeros(len(raw.users), dtype=bool)
    for index in _blocks_of_users(raw.users.codes, len(raw.users.values)):
        pair = raw.users.codes[index] * np.int64(len(raw.items.values)) + raw.items.codes[index]
        # Seldom any pair occurs again, and a hash table tells that sooner than sorting by time as well.
        occurs_again = pd.Series(pair).duplicated(keep=False).to_numpy()
        doubtful = index[occurs_again]
        again[doubtful] = pd.DataFrame({"pair": pair[occurs_again], "time": raw.timestamps[doubtful]}).duplicated()
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


def _by_user_and_time(user: np.ndarray, item: np.ndarray, times: np.ndarray, *, num_users: int) -> _Log:
    """Ties in time keep the order of the file."""
    items, sorted_times, done = np.empty_like(item), np.empty_like(times), 0
    for index in _blocks_of_users(user, num_users):
        index = index[np.lexsort((times[index], user[index]))]  # which is stable
        part = slice(done, done := done + len(index))
        items[part], sorted_times[part] = item[index], times[index]
    bounds = np.concatenate([[0], np.cumsum(np.bincount(user, minlength=num_users))])
    return _Log(items=items, times=sorted_times, bounds=bounds)


def _blocks_of_users(user: np.ndarray, num_users: int) -> Iterator[np.ndarray]:
    """All interactions of some users, then those of the next: places int [M] by user, then as they come.

    Args:
        user: of each interaction, int32 [N].
    """
    from scipy import sparse

    # One 1 in each row, at its user: as columns they lie by user. That counts and copies, and sorts nothing.
    ones, rows = np.ones(len(user), dtype=np.int8), np.arange(len(user) + 1, dtype=_place_type(len(user)))
    by_user = sparse.csr_matrix((ones, user, rows), (len(user), num_users)).tocsc()
    ends = by_user.indptr[np.searchsorted(by_user.indptr, np.arange(_BLOCK, len(user), _BLOCK))]
    yield from np.split(by_user.indices, np.unique(ends))


# --- split --------------------------------------------------------------------------------------------------


def _split_leave_one_out(log: _Log) -> tuple[Rows, Rows, Rows]:
    """By user: last item = test target, second last = validation target, second to third last = training."""
    first, last = log.bounds[:-1], log.bounds[1:] - 1
    is_train = np.ones(len(log.items), dtype=bool)
    for places in (first, last - 1, last):
        is_train[places] = False
    return _rows(log, np.flatnonzero(is_train)), _rows(log, last - 1), _rows(log, last)


def _split_temporal(log: _Log) -> tuple[Rows, Rows, Rows]:
    """All rows by the time of their target (ties: by user, then position), cut 8:1:1."""
    has_history = np.ones(len(log.items), dtype=bool)
    has_history[log.bounds[:-1]] = False
    pos = np.flatnonzero(has_history)
    pos = pos[np.argsort(log.times[pos], kind="stable")]
    first, second = len(pos) * 8 // 10, len(pos) * 9 // 10
    if not 0 < first < second < len(pos):
        raise UserError(
            f"dataset.split.method='temporal': {len(pos)} (history, target) pairs cannot be split 8:1:1; "
            "add data or use leave_one_out"
        )
    return _rows(log, pos[:first]), _rows(log, pos[first:second]), _rows(log, pos[second:])


def _rows(log: _Log, pos: np.ndarray) -> Rows:
    return Rows(log.items, log.bounds, pos.astype(_place_type(len(log.items)), copy=False))


def _place_type(num_places: int) -> type[np.signedinteger]:
    return np.int32 if num_places < 2**31 else np.int64


# --- windows ------------------------------------------------------------------------------------------------


def _number_windows(raw: WindowSplits, config: DatasetConfig, logger: logging.Logger) -> Numbered:
    """Each window's history and target, one behind the other; each is a user of its own."""
    parts = (raw.train, raw.valid, raw.test)
    items = np.concatenate([_sequences(windows) for windows in parts])
    ends = np.cumsum(np.concatenate([windows.length + 1 for windows in parts]))
    bounds = np.concatenate([[0], ends])
    cuts = np.cumsum([len(windows.length) for windows in parts])[:-1]
    train, valid, test = (Rows(items, bounds, pos) for pos in np.split(ends - 1, cuts))
    item_ids = [str(item) for item in range(len(raw.titles))]
    return Numbered(item_ids=item_ids, raw_titles=raw.titles, rows=(train, valid, test))


def _sequences(windows: Windows) -> np.ndarray:
    """The items of each window and its target, int32."""
    width = windows.history.shape[1]
    sequence = np.concatenate([windows.history, windows.target[:, None]], axis=1)  # [N, L + 1]
    is_item = np.arange(width + 1) < windows.length[:, None]
    is_item[:, width] = True
    return sequence[is_item].astype(np.int32)


# By dataset.split.method, which the settings of a data set admit only where its raw data are of that kind.
_BY_METHOD: dict[str, Callable[..., Numbered]] = {
    "leave_one_out": partial(_number_log, _split_leave_one_out),
    "temporal": partial(_number_log, _split_temporal),
    GIVEN_SPLIT: _number_windows,
}
