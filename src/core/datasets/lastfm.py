"""LastFM as iLoRA publishes it: windows of listened artists that come split, without users or times."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from src.core.datasets.base import (
    GIVEN_SPLIT,
    DatasetConfig,
    SplitConfig,
    Windows,
    WindowSplits,
    plain_or_gzipped,
    shorten,
)
from src.core.errors import UserError, check
from src.core.foreign.frames import read_pickled_frame
from src.core.foreign.text import numbered_lines

FILES = ("train_data.df", "Val_data.df", "Test_data.df", "id2name.txt")


@dataclass(frozen=True, kw_only=True)
class LastfmConfig(DatasetConfig):
    """`conf/dataset/lastfm.yaml`: the files are the split, hold the last 10 items, and have no users to drop."""

    source: str = "lastfm"
    name: str = "lastfm"
    max_seq_len: int = 10
    min_user_inter: int = 0
    split: SplitConfig = field(default_factory=lambda: SplitConfig(method=GIVEN_SPLIT))

    def __post_init__(self) -> None:
        super().__post_init__()
        method, minimum = self.split.method, self.min_user_inter
        check(method == GIVEN_SPLIT, "dataset.split.method", method, "given, because lastfm comes split")
        check(minimum == 0, "dataset.min_user_inter", minimum, "0, because lastfm has no users to drop")


class Lastfm:
    """The source of LastFM. Not fetched: no checksum of it is known."""

    config = LastfmConfig

    def archive(self, config: LastfmConfig) -> None:
        return None

    def files(self, config: LastfmConfig, folder: Path) -> list[Path]:
        return raw_files(folder)

    def read(self, config: LastfmConfig, folder: Path) -> WindowSplits:
        return read_lastfm(folder)


def raw_files(folder: Path) -> list[Path]:
    """Windows of the three splits, and the names."""
    return [plain_or_gzipped(folder / name) for name in FILES]


def read_lastfm(folder: Path) -> WindowSplits:
    """Read iLoRA's windows and the artists' names; rows with an empty history are dropped.

    Raises:
        UserError: naming the file, and line or row, of what is wrong.
    """
    train, valid, test, names = raw_files(folder)
    titles = _read_id2name(names)
    tables = {path: _read_windows(path, len(titles)) for path in (train, valid, test)}
    empty = {path: int((table.length == 0).sum()) for path, table in tables.items()}
    shifted = {path: _count_left_padded(table, len(titles)) for path, table in tables.items()}
    return WindowSplits(
        train=_without_empty(train, tables[train]),
        valid=_without_empty(valid, tables[valid]),
        test=_without_empty(test, tables[test]),
        titles=titles,
        notes=tuple(f"{path.name}: dropped {n} rows without a history" for path, n in empty.items() if n),
        warnings=tuple(
            f"{path.name}: {n} of {len(tables[path].length)} rows begin with id 0 and have items behind their len_seq, "
            f"as windows padded on the left do; the first len_seq places are read as items, so pad on the right, by "
            f"{len(titles)}"
            for path, n in shifted.items()
            if n
        ),
    )


_MOST_DIGITS = 18  # of an id; Python makes no integer of more than 4,300


def _read_id2name(path: Path) -> list[str]:
    """The name of each artist 0..n-1."""
    titles: dict[int, str] = {}
    for number, line in numbered_lines(path):
        item, separator, title = line.partition("::")
        if not separator or not item.isdecimal() or len(item) > _MOST_DIGITS:
            raise UserError(f"{path}:{number}: expected id::name, got {shorten(line, 60)!r}")
        if int(item) in titles:
            raise UserError(f"{path}:{number}: item {item} occurs twice; remove one of its lines")
        titles[int(item)] = title
    missing = next((item for item in range(len(titles)) if item not in titles), None)
    if missing is not None:
        raise UserError(f"{path}: ids must be 0 to {len(titles) - 1} without a gap, but {missing} is missing")
    return [titles[item] for item in range(len(titles))]


def _read_windows(path: Path, num_items: int) -> Windows:
    """The rows of a file, those without a history with the length 0."""
    table = _read_table(path)
    # An empty history is written as one padding id with len_seq 1: 976 rows of the training file.
    is_empty = (table.length == 1) & (table.history[:, 0] == num_items)
    table = replace(table, length=np.where(is_empty, 0, table.length))
    _check_windows(path, table, num_items)
    return table


def _without_empty(path: Path, table: Windows) -> Windows:
    keep = table.length > 0
    if not keep.any():
        raise UserError(f"{path}: has no row with a history; replace it by a complete copy")
    return Windows(table.history[keep], table.length[keep], table.target[keep])


def _count_left_padded(table: Windows, num_items: int) -> int:
    """Rows with nothing but id 0 where the padding of a shorter history would stand on the left, and items at the end.

    Right-padded ones have neither items nor, save by chance, so many zeros there.
    """
    width = table.history.shape[1]
    place = np.arange(width)
    on_left = place < (width - table.length)[:, None]  # [N, L]
    behind = place >= table.length[:, None]
    zeros = (table.history == 0) | ~on_left
    items = behind & (table.history != 0) & (table.history != num_items)
    return int((on_left.any(1) & zeros.all(1) & items.any(1)).sum())


def _read_table(path: Path) -> Windows:
    """The three columns as the file has them, of matching shapes."""
    columns = read_pickled_frame(path)
    try:
        history = np.array(list(columns["seq"]), dtype=np.int64)  # [N, L]
        length = np.array(columns["len_seq"], dtype=np.int64)
        target = np.array(columns["next"], dtype=np.int64)
    except KeyError as error:
        raise UserError(f"{path}: the column {error} is missing; it has {', '.join(columns)}") from None
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(
            f"{path}: seq must hold lists of ids of one length, len_seq and next integers: {error}"
        ) from None
    if history.ndim != 2 or history.shape[1] == 0 or not len(history) == len(length) == len(target):
        raise UserError(f"{path}: seq must hold lists of ids of one length, one for each len_seq and next")
    if len(history) == 0:
        raise UserError(f"{path}: has no rows; replace it by a complete copy")
    return Windows(history, length, target)


def _check_windows(path: Path, table: Windows, num_items: int) -> None:
    """Refuse lengths beyond the width and items without a name."""
    length, width = table.length, table.history.shape[1]
    bad = np.flatnonzero((length < 0) | (length > width))
    if len(bad):
        raise UserError(f"{path}: row {bad[0]}: len_seq {length[bad[0]]} is not between 0 and {width}")
    is_item = np.arange(width) < length[:, None]  # [N, L]
    items = np.concatenate([np.where(is_item, table.history, 0), table.target[:, None]], axis=1)  # [N, L + 1]
    rows, places = np.nonzero((items < 0) | (items >= num_items))
    if len(rows):
        item = items[rows[0], places[0]]
        padding = f"; {num_items} is the padding, which stands behind the items" if item == num_items else ""
        raise UserError(f"{path}: row {rows[0]}: item {item} is not in id2name.txt (ids 0 to {num_items - 1}){padding}")
