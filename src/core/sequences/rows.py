"""Prediction rows, computed when they are asked for: what is kept of a row is the place of its target."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

# Of dataset.max_train_rows: not the run's, so that teacher rows stay valid for another run.
_SAMPLE_SEED = 0


@dataclass(frozen=True)
class Rows:
    """Prediction rows: (history, target) pairs that point into one flat item array.

    Row i has the target `items[pos[i]]`, and as its history all that the same user has before that.

    Attributes:
        items: int32 [T], shared by all splits, user by user; may be mapped from a file.
        bounds: int64 [num_users + 1], shared by all splits: user u has the items from bounds[u] to bounds[u + 1] - 1.
            For lastfm, which has no users, each row is a user of its own.
        pos: int32 or int64 [N]; none is a user's first, for no history is empty.
    """

    items: np.ndarray
    bounds: np.ndarray
    pos: np.ndarray

    def __len__(self) -> int:
        return len(self.pos)

    @property
    def user(self) -> np.ndarray:
        """User of each row, int32 [N]; computed, so to be taken once and not row by row."""
        return (np.searchsorted(self.bounds, self.pos, side="right") - 1).astype(np.int32)

    @property
    def start(self) -> np.ndarray:
        """Where the history of each row begins, int64 [N]; computed as `user` is."""
        return self.bounds[self.user]

    @property
    def targets(self) -> np.ndarray:
        """Target of each row, int64 [N]; computed as `user` is."""
        return self.items[self.pos].astype(np.int64)

    def select(self, index: np.ndarray | slice) -> "Rows":
        """The rows at `index` (int [M] or bool [N]), in its order."""
        return replace(self, pos=self.pos[index])

    def parts(self, size: int) -> Iterator["Rows"]:
        """All rows in their order, `size` at a time: for what needs more memory for a row than there is."""
        for begin in range(0, len(self), size):
            yield self.select(slice(begin, begin + size))

    def history(self, i: int) -> np.ndarray:
        """Whole, unpadded history of row i, int64 [L]."""
        start = self.bounds[np.searchsorted(self.bounds, self.pos[i], side="right") - 1]
        return self.items[start : self.pos[i]].astype(np.int64)

    def target(self, i: int) -> int:
        """Target of row i."""
        return int(self.items[self.pos[i]])

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
        rows = self if index is None else self.select(index)
        length = np.minimum(rows.pos - rows.start, max_len)
        offset = np.arange(max_len)
        # Places behind a history are clipped to its target, a valid address, and then overwritten.
        place = np.minimum((rows.pos - length)[:, None] + offset, rows.pos[:, None])  # [B, max_len]
        history = np.where(offset < length[:, None], self.items[place], pad_id)
        return history.astype(np.int64), length, rows.targets


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


def sample_rows(rows: Rows, size: int) -> Rows:
    """A fixed random sample of `size` rows, in their order; all rows if there are no more."""
    # RandomState: its stream is frozen across NumPy versions, that of default_rng is not.
    chosen = np.random.RandomState(_SAMPLE_SEED).permutation(len(rows))[:size]
    return rows.select(np.sort(chosen))
