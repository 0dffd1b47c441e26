"""Batches of training rows as a PyTorch DataLoader."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from src.core.data_utils import Rows


@dataclass(frozen=True)
class Batch:
    """Rows of one step.

    Attributes:
        row: int64 [B], row numbers: the key on which teacher outputs join.
        history: int64 [B, L], right-padded.
        length: int64 [B].
        target: int64 [B].
    """

    row: Tensor
    history: Tensor
    length: Tensor
    target: Tensor


class RowDataset(Dataset[Batch]):
    """Rows as tensors on the device; indexing takes a whole batch of row numbers at once."""

    def __init__(self, rows: Rows, max_len: int, pad_id: int, device: torch.device) -> None:
        history, length, target = rows.windows(max_len, pad_id)
        # int32 halves the memory of the one large tensor; ids never need more.
        self.history = torch.from_numpy(history).to(device, torch.int32)  # [N, L]
        self.length = torch.from_numpy(length).to(device)
        self.target = torch.from_numpy(target).to(device)

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, row: Tensor) -> Batch:
        row = row.to(self.target.device)
        return Batch(row, self.history[row].long(), self.length[row], self.target[row])


class ShuffledBatches(Sampler[Tensor]):
    """Every row once per epoch in a new random order, `batch_size` at a time; the last batch may be short."""

    def __init__(self, num_rows: int, batch_size: int, generator: torch.Generator) -> None:
        self.num_rows, self.batch_size, self.generator = num_rows, batch_size, generator

    def __len__(self) -> int:
        return -(-self.num_rows // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        yield from torch.randperm(self.num_rows, generator=self.generator).split(self.batch_size)


def build_train_loader(
    rows: Rows, max_len: int, pad_id: int, batch_size: int, device: torch.device, generator: torch.Generator
) -> DataLoader[Batch]:
    """A loader over all rows whose batches already lie on `device`."""
    dataset = RowDataset(rows, max_len, pad_id, device)
    return DataLoader(dataset, sampler=ShuffledBatches(len(dataset), batch_size, generator), batch_size=None)
