"""Batches of training rows, row by row or packed into windows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from src.core.data_utils import Rows, SequenceDataset
from src.core.errors import UserError
from src.student.context import GeneratorState, Stateful
from src.student.models import Shapes, Student

_GROUP_COST = 128  # places whose time it takes to treat one more width apart


@dataclass(frozen=True)
class Batch:
    """Rows of one step.

    Attributes:
        row: int64 [B], row numbers: the key on which teacher outputs join.
        windows: int64 [W, L], right-padded histories: one per row, or each shared by successive targets of a user.
        length: int64 [B], how many items of its window come before the target.
        target: int64 [B].
        window: int64 [B], the window that each row belongs to, ascending, or None where row i has window i.
        shapes: of shared windows, how many successive ones are read how far; what lies behind is padding.
    """

    row: Tensor
    windows: Tensor
    length: Tensor
    target: Tensor
    window: Tensor | None = None
    shapes: Shapes = ()

    def encode(self, model: Student, table: Tensor | None) -> Tensor:
        """User representations float [B, width]; with shared windows one causal forward pass serves all targets."""
        if self.window is None:
            return model.encode(self.windows, self.length, table)
        numbers = [number for number, _ in self.shapes]
        parts = zip(self.windows.split(numbers), self.shapes, strict=True)
        read = torch.cat([windows[:, :width].flatten() for windows, (_, width) in parts])  # [T]
        return model.encode_all(read, self.shapes, table)[self._first()[self.window] + self.length - 1]

    def _first(self) -> Tensor:
        """Where each window begins among the places that are read: int64 [W]."""
        widths = torch.cat([self.length.new_full((number,), width) for number, width in self.shapes])
        return widths.cumsum(0) - widths

    def histories(self, pad_id: int) -> Tensor:
        """What precedes each target in its window: int64 [B, L], right-padded."""
        if self.window is None:
            return self.windows
        places = torch.arange(self.windows.shape[1], device=self.length.device)
        return self.windows[self.window].masked_fill(places >= self.length[:, None], pad_id)


class Loader(Protocol):
    """Batches of one epoch after another."""

    @property
    def num_rows(self) -> int: ...

    @property
    def order(self) -> Stateful:
        """Where the random stream is that the order of the rows is drawn from."""
        ...

    def __len__(self) -> int:
        """Steps of an epoch; packed batches may need a step less or more."""
        ...

    def __iter__(self) -> Iterator[Batch]: ...


class RowDataset(Dataset[Batch]):
    """Rows as tensors on the device; indexing takes a whole batch of row numbers at once.

    Windows are cut when they are asked for: all of a log's rows would take its length times `max_len`.
    """

    def __init__(self, rows: Rows, max_len: int, pad_id: int, device: torch.device) -> None:
        self.rows, self.max_len, self.pad_id, self.device = rows, max_len, pad_id, device

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: Tensor) -> Batch:
        windows = self.rows.windows(self.max_len, self.pad_id, row.numpy())
        history, length, target = (torch.from_numpy(values).to(self.device) for values in windows)
        return Batch(row.to(self.device), history, length, target)


class ShuffledBatches(Sampler[Tensor]):
    """Every row once per epoch in a new random order, `batch_size` at a time; the last batch may be short."""

    def __init__(self, num_rows: int, batch_size: int, generator: torch.Generator) -> None:
        self.num_rows, self.batch_size, self.generator = num_rows, batch_size, generator

    def __len__(self) -> int:
        return -(-self.num_rows // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        yield from torch.randperm(self.num_rows, generator=self.generator).split(self.batch_size)


class RowLoader(DataLoader[Batch]):
    """All rows, each with a window of its own; the batches already lie on the device."""

    def __init__(
        self,
        rows: Rows,
        *,
        max_len: int,
        pad_id: int,
        batch_size: int,
        device: torch.device,
        generator: torch.Generator,
    ) -> None:
        self.num_rows, self.order = len(rows), GeneratorState(generator)
        dataset = RowDataset(rows, max_len, pad_id, device)
        super().__init__(dataset, sampler=ShuffledBatches(len(dataset), batch_size, generator), batch_size=None)


class PackedLoader:
    """All rows, the successive ones of a sequence sharing a window; the batches already lie on the device.

    A history that fits the window is one window, in which every target sees exactly what it sees as a row. A longer
    one is cut: the first window ends at a random place in its second half, drawn anew for each epoch and sequence, and
    each later one goes on for half a window and reads as many items before that as fit. So every target is trained
    once per epoch, with at least half a window of history where there is as much.

    A batch takes whole windows, in random order, until it has `batch_size` targets, and orders them by their length.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        max_len: int,
        pad_id: int,
        batch_size: int,
        device: torch.device,
        generator: torch.Generator,
    ) -> None:
        self.num_rows, self.order = len(rows), GeneratorState(generator)
        self.max_len, self.pad_id, self.batch_size, self.generator = max_len, pad_id, batch_size, generator
        _, sequence = np.unique(rows.start, return_inverse=True)
        self.sequence, self.start, self.pos = (
            torch.from_numpy(a.astype(np.int64)) for a in (sequence, rows.start, rows.pos)
        )
        self.items = torch.from_numpy(rows.items).to(device)

    def __len__(self) -> int:
        return -(-self.num_rows // self.batch_size)

    def _cut(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Windows of an epoch: row numbers by window int64 [N], each one's count of rows, begin and end, [W]."""
        length = self.pos - self.start
        half = max(self.max_len // 2, 1)
        longest = torch.zeros(int(self.sequence.max()) + 1, dtype=torch.int64)
        longest = longest.scatter_reduce(0, self.sequence, length, "amax")
        early = torch.randint(half, longest.shape, generator=self.generator)
        first = torch.where(longest <= self.max_len, self.max_len, self.max_len - early)[self.sequence]
        number = (length - first + half - 1).div(half, rounding_mode="floor").clamp(min=0)  # window of its sequence
        key, window = (self.sequence * (int(number.max()) + 1) + number).unique(return_inverse=True)
        order = (window * (int(length.max()) + 1) + length).argsort()
        end = torch.zeros(len(key), dtype=torch.int64).scatter_reduce(0, window, self.pos, "amax")
        begin = torch.zeros_like(end).scatter(0, window, self.start)
        return order, window.bincount(minlength=len(key)), torch.maximum(begin, end - self.max_len), end

    def __iter__(self) -> Iterator[Batch]:
        rows, count, begin, end = self._cut()
        first = count.cumsum(0) - count  # of each window's rows, in `rows`
        shuffled = torch.randperm(len(count), generator=self.generator)
        before = count[shuffled].cumsum(0) - count[shuffled]
        sizes = (before // self.batch_size).unique_consecutive(return_counts=True)[1]
        for chosen in shuffled.split(sizes.tolist()):
            windows = chosen[(end - begin)[chosen].argsort(stable=True)]
            window = torch.repeat_interleave(torch.arange(len(windows)), count[windows])
            offset = torch.arange(len(window)) - (count[windows].cumsum(0) - count[windows])[window]
            yield self._batch(rows[first[windows][window] + offset], window, begin[windows], end[windows])

    def _batch(self, row: Tensor, window: Tensor, begin: Tensor, end: Tensor) -> Batch:
        """Row numbers [B], their windows [B], and the places where each window begins and has its last target, [W]."""
        device = self.items.device
        place = begin[:, None] + torch.arange(self.max_len)  # [W, L]
        inside = (place < end[:, None]).to(device)
        items = self.items[place.clamp(max=len(self.items) - 1).to(device)].long()
        windows = items.masked_fill(~inside, self.pad_id)
        target = self.items[self.pos[row].to(device)].long()
        length = (self.pos[row] - begin[window]).to(device)
        return Batch(row.to(device), windows, length, target, window.to(device), shapes_of(end - begin))


def shapes_of(widths: Tensor) -> Shapes:
    """Windows, ascending in width, in groups whose bounds are the largest width halved again and again.

    A group that would save too few places joins the next; each is as wide as its widest window.

    Args:
        widths: int64 [W], at least 1, on the CPU.
    """
    widest = int(widths[-1])
    bounds = [widest >> halved for halved in range(widest.bit_length())][::-1]  # 1 .. widest
    ends = torch.searchsorted(widths, torch.tensor(bounds), right=True).tolist()
    shapes, begin = [], 0
    for bound, wider, end in zip(bounds, [*bounds[1:], None], ends, strict=True):
        if end > begin and (wider is None or (end - begin) * (wider - bound) >= _GROUP_COST):
            shapes.append((end - begin, int(widths[end - 1])))
            begin = end
    return shapes


def require_full_batch(batch_size: int, num_rows: int) -> None:
    """Raises a UserError where there are fewer rows than a batch takes."""
    if batch_size > num_rows:
        raise UserError(
            f"student.batch_size={batch_size} (distill.batch_size when distilling): a batch takes more than the "
            f"{num_rows} training rows there are; lower it"
        )


LOADERS: dict[str, Callable[..., Loader]] = {"rows": RowLoader, "packed": PackedLoader}  # by `config.BATCHINGS`


def build_train_loader(
    dataset: SequenceDataset,
    *,
    batching: str,
    max_len: int,
    batch_size: int,
    device: torch.device,
    generator: torch.Generator,
) -> Loader:
    """A loader over all training rows.

    Args:
        batching: one of `LOADERS`; max_len: items of a window; generator: what the order is drawn from.

    Raises:
        UserError: there are fewer rows than a batch takes.
    """
    require_full_batch(batch_size, len(dataset.train))
    return LOADERS[batching](
        dataset.train,
        max_len=max_len,
        pad_id=dataset.pad_id,
        batch_size=batch_size,
        device=device,
        generator=generator,
    )
