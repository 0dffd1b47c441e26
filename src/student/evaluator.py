"""Full-ranking evaluation, the same for every model that scores items."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from src.core.data_utils import Rows, SequenceDataset
from src.core.files import write_atomic, write_json
from src.core.metrics import metrics_from_ranks, rank_counts
from src.student.models import Student

_CHUNK = 512

ScoreRows = Callable[[np.ndarray], Tensor]


@dataclass(frozen=True)
class Evaluation:
    """Metrics over rows, with the history's items left in (`metrics`) and removed (`metrics_masked`).

    `ranks` holds per row int64 [N]: user, target, better, equal, better_masked, equal_masked.
    """

    metrics: dict[str, float]
    metrics_masked: dict[str, float]
    ranks: dict[str, np.ndarray]

    def by(self, masked: bool) -> dict[str, float]:
        """The metrics with the history's items removed, or left in."""
        return self.metrics_masked if masked else self.metrics


def evaluate_model(
    model: Student, rows: Rows, dataset: SequenceDataset, ks: list[int], device: torch.device
) -> Evaluation:
    """Evaluate a student: dropout off, every item ranked. The model's mode is restored."""
    was_training = model.training
    model.eval().to(device)

    def score(index: np.ndarray) -> Tensor:
        history, length, _ = rows.windows(model.config.max_seq_len, dataset.pad_id, index)
        return model(torch.from_numpy(history).to(device), torch.from_numpy(length).to(device))

    try:
        return evaluate_scores(score, rows, dataset.num_items, ks)
    finally:
        model.train(was_training)


@torch.no_grad()
def evaluate_scores(score: ScoreRows, rows: Rows, num_items: int, ks: list[int]) -> Evaluation:
    """Evaluate any scorer.

    Args:
        score: maps row numbers int64 [B] to scores float [B, num_items].
        rows: rows with their targets.
    """
    names = ("better", "equal", "better_masked", "equal_masked")
    counts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for begin in range(0, len(rows), _CHUNK):
        index = np.arange(begin, min(begin + _CHUNK, len(rows)))
        scores = score(index)
        chunk = rows.select(index)
        targets = torch.from_numpy(chunk.targets).to(scores.device)
        seen = history_mask(chunk, num_items).to(scores.device)
        for name, value in zip(
            names, (*rank_counts(scores, targets), *rank_counts(scores, targets, seen)), strict=True
        ):
            counts[name].append(value.cpu().numpy())
    ranks = {name: np.concatenate(chunks) if chunks else np.zeros(0, int) for name, chunks in counts.items()}
    return Evaluation(
        metrics_from_ranks(ranks["better"], ranks["equal"], ks),
        metrics_from_ranks(ranks["better_masked"], ranks["equal_masked"], ks),
        {"user": rows.user.astype(np.int64), "target": rows.targets, **ranks},
    )


def history_mask(rows: Rows, num_items: int) -> Tensor:
    """Bool [N, num_items]: which items stand anywhere in each row's whole history."""
    lengths = rows.pos - rows.start
    row = np.repeat(np.arange(len(rows)), lengths)
    offset = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    mask = torch.zeros(len(rows), num_items, dtype=torch.bool)
    mask[torch.from_numpy(row), torch.from_numpy(rows.items[np.repeat(rows.start, lengths) + offset]).long()] = True
    return mask


def write_evaluation(path: Path, ranks_path: Path, evaluation: Evaluation, about: dict[str, object]) -> None:
    """Write the ranks (npz) and then the metrics (JSON), each whole or not at all."""

    def write_npz(temporary: Path) -> None:
        with temporary.open("wb") as file:  # a file object: numpy would append .npz to a name
            np.savez_compressed(file, **evaluation.ranks)

    write_atomic(ranks_path, write_npz)
    result = {**about, "metrics": evaluation.metrics, "metrics_masked": evaluation.metrics_masked}
    write_json(path, result)
