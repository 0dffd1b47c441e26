"""Rankings of training rows by the log and by what a teacher's embeddings say of the items."""

import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from src.core.data_utils import SequenceDataset
from src.core.metrics import MetricsConfig
from src.distill.data_bridge import TeacherOutputs
from src.student.evaluator import best_unseen
from src.student.references import ChainWithSimilarity, Vectors

_CHUNK = 512
_Ranks = Callable[[np.ndarray], tuple[Tensor, Tensor]]  # row numbers to best items and distances, as `rank_unseen`


def similarity_ranking(
    dataset: SequenceDataset,
    vectors: Vectors,
    *,
    weight: float | None,
    metrics: MetricsConfig,
    top_k: int,
    per_sequence: bool,
    logger: logging.Logger,
) -> TeacherOutputs:
    """The best items of each training row by the Markov chain and by similarity, none of the row's history.

    The chain counts training rows, but for each row all others only (leave-one-out), so that the teacher does not
    see the target. Distances are those of `ranked`, with the scores for logits.

    Args:
        vectors: of the items, of length 1 or 0, [num_items, width].
        weight: of the similarity beside the chain's scores; None: chosen on validation rows, by `metrics`.

    Raises:
        UserError: a history leaves fewer than `top_k` items.
    """
    model, rows = ChainWithSimilarity.of(dataset, metrics, vectors, weight), dataset.train
    logger.info("rankings of the training rows: Markov chain, leave-one-out, and %s", model.description(metrics))

    def rank(index: np.ndarray) -> tuple[Tensor, Tensor]:
        part = rows.select(index)
        return best_unseen(model.scores(part, leave_one_out=True), part, count=top_k, key="distill.top_k")

    return ranked(rank, len(rows), per_sequence)


def ranked(rank: _Ranks, num_rows: int, per_sequence: bool) -> TeacherOutputs:
    """The best items of all training rows, and their distances.

    An item's distance is minus its log-probability; min-max over the row's items as in an export, or with
    `per_sequence` the best item's own.
    """
    parts = [rank(index) for index in np.array_split(np.arange(num_rows), -(-num_rows // _CHUNK))]
    items, distance = (torch.cat(part).cpu() for part in zip(*parts, strict=True))  # [num_rows, top_k]
    return TeacherOutputs(ranking=items, confidence=distance[:, :1] if per_sequence else _min_max(distance))


def _min_max(distance: Tensor) -> Tensor:
    low, high = distance[:, :1], distance[:, -1:]
    return (distance - low) / (high - low).clamp(min=1e-12)
