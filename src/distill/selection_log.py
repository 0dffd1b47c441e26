"""What a policy chose, epoch by epoch: for the tracker, and as a file of row numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.core.data_utils import SequenceDataset
from src.core.errors import UserError
from src.core.files import write_atomic
from src.core.foreign.arrays import read_arrays
from src.core.tracking.base import ScalarWriter
from src.distill.selection_policy import SelectionPolicy, StudentInfo, TeacherInfo
from src.student.datamodule import Batch

_MAX_LOG_BYTES = 1 << 29


class LoggedPolicy(SelectionPolicy):
    """A policy that selects as `inner` does and keeps what it selected.

    Each epoch writes three numbers, w the weights of all N training rows: `selection/share`, sum w / N;
    `selection/overlap`, sum min(w, w of the epoch before) / sum w; `selection/popularity`, the mean number of
    training rows that have the same target, weighted by w.
    """

    def __init__(self, inner: SelectionPolicy, writer: ScalarWriter) -> None:
        super().__init__()
        self.inner, self.writer, self.reads_scores = inner, writer, inner.reads_scores

    def start(self, dataset: SequenceDataset, seed: int) -> None:
        self.inner.start(dataset, seed)
        targets = torch.from_numpy(dataset.train.targets)
        self.popularity = torch.bincount(targets, minlength=dataset.num_items)[targets].double()
        self.weights = torch.zeros(len(targets))  # of this epoch
        self.before: Tensor | None = None  # of the one before
        self.total = torch.zeros(len(targets))
        self.epochs: list[Tensor] = []  # uint8 [N / 8], bits of the rows with a weight above 0
        self.passed = 0

    def select(self, batch: Batch, teacher_info: TeacherInfo, student_info: StudentInfo) -> Tensor:
        weights = self.inner.select(batch, teacher_info, student_info) * teacher_info.known
        self.weights = self.weights.to(batch.row.device)
        self.weights[batch.row] = weights.float()
        self.passed += len(batch.row)
        if self.passed == len(self.weights):
            self._end_epoch()
        return weights

    def _end_epoch(self) -> None:
        weights, self.passed = self.weights.cpu(), 0
        if not ((weights >= 0) & (weights <= 1)).all():
            worst = weights[(weights - 0.5).abs().nan_to_num(float("inf")).argmax()].item()
            raise UserError(f"{type(self.inner).__name__}.select: a weight of {worst}; all must be from 0 to 1")
        self.epochs.append(torch.from_numpy(np.packbits(weights.numpy() > 0)))
        self.total += weights
        epoch, amount = len(self.epochs), max(weights.sum().item(), 1e-12)
        self.writer.add_scalar("selection/share", weights.mean().item(), epoch)
        self.writer.add_scalar("selection/popularity", (weights * self.popularity).sum().item() / amount, epoch)
        if self.before is not None:
            shared = torch.minimum(weights, self.before).sum().item()
            self.writer.add_scalar("selection/overlap", shared / amount, epoch)
        self.before = weights.clone()

    def save(self, path: Path) -> None:
        """Write what `read_selection` reads: per epoch one bit a row, and the mean weight of each row."""
        chosen = torch.stack(self.epochs).numpy()

        def write(temporary: Path) -> None:
            mean = (self.total / len(self.epochs)).numpy()
            with temporary.open("wb") as file:
                np.savez_compressed(file, chosen=chosen, mean_weight=mean)

        write_atomic(path, write)

    def state_dict(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("weights", "before", "total", "epochs", "passed")}
        return {**own, "inner": self.inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weights, self.before, self.total = state["weights"].clone(), state["before"], state["total"].clone()
        self.epochs, self.passed = list(state["epochs"]), state["passed"]
        self.inner.load_state_dict(state["inner"])


def read_selection(path: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """A file of `LoggedPolicy.save`: the numbers of the rows distilled in each epoch, int64 ascending, and the mean
    weight of each row over the epochs, float32 [num_rows]."""
    advice = "run the distillation again"
    saved = read_arrays(path, ("chosen", "mean_weight"), max_bytes=_MAX_LOG_BYTES, advice=advice)
    chosen, weight = saved["chosen"], saved["mean_weight"]
    fits = chosen.dtype == np.uint8 and weight.dtype == np.float32 and weight.ndim == 1 and chosen.ndim == 2
    if not fits or chosen.shape[1] != -(-len(weight) // 8):
        raise UserError(f"{path}: not a bit per epoch and row, and a weight per row; {advice}")
    return [np.flatnonzero(np.unpackbits(bits, count=len(weight))) for bits in chosen], weight
