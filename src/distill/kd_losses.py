"""Distillation losses of DLLM2Rec (arXiv 2405.00338; code istarryn/DLLM2Rec@b78cc65), one value per sample.

Every loss here is a vector [B]; `weighted_mean` turns it into sum_i w_i l_i / B, so that the loss under a
selection m and the loss under 1 - m add up to the loss under everything.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_EPSILON = 1e-8


@dataclass(frozen=True)
class RankingWeights:
    """How the three weights of a teacher's candidate are mixed (gamma in the upstream code)."""

    position: float
    confidence: float
    consistency: float


def candidate_weights(ranking: Tensor, confidence: Tensor, student_scores: Tensor, weights: RankingWeights) -> Tensor:
    """Importance of each candidate of the teacher.

    position_k = exp(-k) over its sum (k = 1..K); confidence_k = exp(-distance_k) over its sum; consistency_k
    = 1 if the student has the item among its own top K now. The weighted sum is divided by its row sum.

    Args:
        ranking: int64 [B, K] item ids; confidence: float [B, K] distances.
        student_scores: float [B, num_items].

    Returns:
        float [B, K] without gradient, rows sum to 1.
    """
    top_k = ranking.shape[1]
    position = torch.exp(-torch.arange(1, top_k + 1, device=ranking.device, dtype=torch.float32))
    closeness = torch.exp(-confidence) + _EPSILON
    own = student_scores.detach().topk(top_k).indices  # [B, K]
    consistent = (ranking[:, :, None] == own[:, None]).any(2).float() + _EPSILON  # [B, K]
    mixed = (
        weights.position * position / position.sum()
        + weights.confidence * closeness / closeness.sum(1, keepdim=True)
        + weights.consistency * consistent
    )
    return mixed / mixed.sum(1, keepdim=True)


def ranking_loss(student_scores: Tensor, ranking: Tensor, weights: Tensor) -> Tensor:
    """Importance-weighted ranking distillation: sum_k w_k * -log sigmoid(score of c_k); float [B].

    Args:
        student_scores: float [B, num_items]; ranking: int64 [B, K]; weights: float [B, K].
    """
    return (weights * F.softplus(-student_scores.gather(1, ranking))).sum(1)


def alignment_loss(item_embeddings: Tensor, projected: Tensor) -> Tensor:
    """Collaborative embedding distillation as an explicit loss: 1 - cosine of the two; float [B].

    Args:
        item_embeddings: float [B, d], the student's embeddings of the targets.
        projected: float [B, d], the teacher's embeddings of the same items, projected.
    """
    return 1 - F.cosine_similarity(item_embeddings, projected, dim=1)


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """sum_i w_i l_i / B. Samples of weight 0 add exactly 0, even where their loss is not finite."""
    weights = weights.to(losses.dtype)
    return torch.where(weights == 0, 0.0, losses * weights).sum() / len(losses)
