"""Distillation losses of DLLM2Rec (arXiv 2405.00338; code istarryn/DLLM2Rec@b78cc65), one value per sample.

Every loss here is a vector [B]; `compute` turns them into sum_i mask_i l_i / B, so that the loss under a mask m and the
loss under 1 - m add up to the loss under everything.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from src.distill.config import RankingWeights

_EPSILON = 1e-8


@dataclass(frozen=True, kw_only=True)
class Term:
    """One term of the distillation loss.

    Attributes:
        weight: what it is multiplied by in the total loss.
        losses: float [B], one for each sample.
    """

    weight: float
    losses: Tensor


def compute(terms: Mapping[str, Term], *, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The distillation loss of a batch under a mask: sum over the terms of weight * sum_i mask_i l_i / B.

    Args:
        terms: at least one, by name.
        mask: bool or float [B], how much each sample is distilled.

    Returns:
        A scalar, and each term before its weight, detached, as `loss_<name>`.
    """
    means = {name: weighted_mean(term.losses, mask) for name, term in terms.items()}
    total = sum(
        (terms[name].weight * mean for name, mean in means.items()), start=mask.new_zeros((), dtype=torch.float32)
    )
    return total, {f"loss_{name}": mean.detach() for name, mean in means.items()}


def candidate_weights(
    ranking: Tensor,
    confidence: Tensor,
    student_scores: Tensor | None,
    weights: RankingWeights,
    per_sequence: bool = False,
) -> Tensor:
    """Importance of each candidate of the teacher.

    position_k = exp(-k) over its sum (k = 1..K); confidence_k = exp(-distance_k / temperature) over its sum;
    consistency_k = 1 if the student has the item among its own top K now. The weighted sum is divided by its row sum.
    With one distance per row (the paper) confidence = exp(-distance / temperature) says how far to trust the row as a
    whole, so nothing is divided by sums over the row.

    Args:
        ranking: int64 [B, K] item ids; confidence: float [B, K] distances of those items, or [B, 1] of the row.
        student_scores: float [B, num_items]; not read, and may be None, where the consistency weighs nothing.
        per_sequence: there is one distance per row.

    Returns:
        float [B, K] without gradient; rows sum to 1 unless `per_sequence`.
    """
    top_k = ranking.shape[1]
    position = torch.exp(-torch.arange(1, top_k + 1, device=ranking.device, dtype=torch.float32))
    closeness = torch.exp(-confidence / weights.temperature) + _EPSILON
    if not per_sequence:
        closeness = closeness / closeness.sum(1, keepdim=True)
    mixed = weights.position * position / position.sum() + weights.confidence * closeness
    if weights.consistency > 0:
        assert student_scores is not None
        own = student_scores.detach().topk(top_k).indices  # [B, K]
        consistent = (ranking[:, :, None] == own[:, None]).any(2).float() + _EPSILON  # [B, K]
        mixed = mixed + weights.consistency * consistent
    return mixed if per_sequence else mixed / mixed.sum(1, keepdim=True)


def positive_losses(candidate_scores: Tensor) -> Tensor:
    """The paper's loss of each candidate, -log sigmoid(s_c), from the student's scores of them: both float [B, K]."""
    return F.softplus(-candidate_scores)


def official_losses(candidate_scores: Tensor, negative: Tensor) -> Tensor:
    """Upstream's loss of each candidate, -log sigmoid(s_c) - log sigmoid(1 - s_negative), as written: float [B, K].

    Args:
        negative: float [B], the scores of the base loss's negatives.
    """
    return positive_losses(candidate_scores) + F.softplus(negative - 1)[:, None]


def softmax_losses(log_partition: Tensor, candidate_scores: Tensor) -> Tensor:
    """Cross-entropy with each candidate as the target, -log softmax(s)_c = log sum_j exp(s_j) - s_c: float [B, K].

    Args:
        log_partition: float [B, 1], log sum_j exp(s_j) or an estimate; candidate_scores: float [B, K].
    """
    return log_partition - candidate_scores


def average_over_batch(losses: Tensor, known: Tensor) -> Tensor:
    """Each candidate's loss averaged over the rows that have a teacher, in place of the row's own.

    Upstream multiplies weights [B, 1] with losses [B], which makes a [B, B] matrix, and takes its mean:
    mean_i(w_ik) * mean_j(l_jk). Written as mean_i(w_ik * mean_j(l_jk)) that is a loss for each row, linear in what the
    row is weighted by, so it can be masked row by row.

    Args:
        losses: float [B, K]; known: bool [B].

    Returns:
        float [1, K]; 0 where no row has a teacher.
    """
    kept = torch.where(known[:, None], losses, 0.0)
    return kept.sum(0, keepdim=True) / known.sum().clamp(min=1)


def alignment_loss(item_embeddings: Tensor, projected: Tensor) -> Tensor:
    """Collaborative embedding distillation as an explicit loss: 1 - cosine of the two; float [B].

    Args:
        item_embeddings: float [B, d], the student's embeddings of the targets.
        projected: float [B, d], the teacher's embeddings of the same items, projected.
    """
    return 1 - F.cosine_similarity(item_embeddings, projected, dim=1)


def standing_for_all(mask: Tensor) -> Tensor:
    """A mask [B], bool or float, scaled until it sums to B: what is distilled then weighs as much as the whole batch.

    `compute` under it divides by the sum of the mask. Where nothing is selected all weights stay 0.
    """
    weights = mask.float()
    total = weights.sum()
    return weights * (len(weights) / torch.where(total > 0, total, 1.0))


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """sum_i w_i l_i / B. Samples of weight 0 add exactly 0, even where their loss is not finite."""
    weights = weights.to(losses.dtype)
    return torch.where(weights == 0, 0.0, losses * weights).sum() / len(losses)
