"""Ranking metrics for one held-out target per row, exact in the presence of ties.

A row's outcome is two counts: how many items score better than the target, and how many score the same
(the target included). Every metric is the expectation over a random order among the tied items, so a
constant scorer gets exactly what chance gets.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from src.core.errors import UserError, check
from src.core.settings import EVALUATION

if TYPE_CHECKING:
    from torch import Tensor

_NAMES = ("recall", "ndcg", "hit_ratio")
HISTORIES = ("shown", "removed")


@dataclass(frozen=True, kw_only=True)
class MetricsConfig:
    """`conf/metrics`: cut-offs, and which metric decides: picks the best epoch, is tested and stands in headlines.

    Attributes:
        monitor: the metric.
        history: whether items of a row's history are ranked, too (`shown`), or left out (`removed`), as is usual for
            data in which nobody takes an item twice. Both are always reported.
    """

    ks: list[int] = field(default_factory=lambda: [1, 5, 10, 20], metadata=EVALUATION)
    monitor: str = "ndcg@10"
    history: str = "shown"

    def __post_init__(self) -> None:
        check(
            len(self.ks) > 0 and all(k >= 1 for k in self.ks) and len(set(self.ks)) == len(self.ks),
            "metrics.ks",
            list(self.ks),
            "a list of different integers >= 1",
        )
        allowed = [f"{name}@{k}" for k in self.ks for name in _NAMES] + ["mrr"]
        check(self.monitor in allowed, "metrics.monitor", self.monitor, f"one of {', '.join(allowed)}")
        check(self.history in HISTORIES, "metrics.history", self.history, f"one of {', '.join(HISTORIES)}")

    @property
    def masked(self) -> bool:
        """Whether the ranking that decides leaves the history's items out."""
        return self.history == "removed"

    @property
    def part(self) -> str:
        """The part of an `eval_*.json` that decides."""
        return "metrics_masked" if self.masked else "metrics"

    @property
    def list_length(self) -> int:
        """How many of the best items metrics beyond accuracy look at: the deciding metric's cut-off, or the largest."""
        _, _, k = self.monitor.partition("@")
        return int(k) if k else max(self.ks)

    @property
    def description(self) -> str:
        """The metric that decides, for the log: `ndcg@10`, or `ndcg@10 (history removed)`."""
        return f"{self.monitor} (history removed)" if self.masked else self.monitor


def rank_counts(scores: "Tensor", targets: "Tensor", excluded: "Tensor | None" = None) -> "tuple[Tensor, Tensor]":
    """How many items stand above each target, and how many stand level with it.

    Args:
        scores: float [B, num_items], higher is better.
        targets: int64 [B].
        excluded: optional bool [B, num_items] of items out of the ranking; a target is never excluded.

    Returns:
        `better` int64 [B] and `equal` int64 [B]; `equal` counts the target itself and is at least 1.

    Raises:
        UserError: a score is NaN, which would rank as best or worst at random.
    """
    import torch  # a second, which those who only read metrics do without

    if scores.amax(1).isnan().any():  # a NaN is its row's largest; a bool for each score would take five times as long
        raise UserError("evaluation: the model's scores contain NaN; training diverged, lower the learning rate")
    target_score = scores.gather(1, targets[:, None])  # [B, 1]
    better, equal = scores > target_score, scores == target_score
    if excluded is not None:
        kept = ~excluded
        kept.scatter_(1, targets[:, None], True)
        better, equal = better & kept, equal & kept
    # Nine times as fast as a sum in int64, the default; no row is longer.
    return better.sum(1, dtype=torch.int32).long(), equal.sum(1, dtype=torch.int32).long()


def metrics_from_ranks(better: np.ndarray, equal: np.ndarray, ks: list[int]) -> dict[str, float]:
    """Mean metrics over rows; `metric_per_row` has the formulas.

    Args:
        better, equal: int [N] from `rank_counts`.
        ks: cut-offs.

    >>> metrics_from_ranks(np.array([0, 1]), np.array([1, 2]), [2])["ndcg@2"]  # (1 + (1/log2(3)) / 2) / 2
    0.6577324383928644
    """
    if len(better) == 0:
        raise UserError("evaluation: there are no rows to evaluate")
    names = [f"{name}@{k}" for k in ks for name in _NAMES] + ["mrr"]
    return {name: float(metric_per_row(name, better, equal).mean()) for name in names}


def metric_per_row(name: str, better: np.ndarray, equal: np.ndarray) -> np.ndarray:
    """One metric of each row: float [N].

    With the target on 0-based position p, uniform on better .. better + equal - 1:
    Recall@K = HitRatio@K = P(p < K), divided by the one relevant item; NDCG@K = E[1 / log2(p + 2); p < K],
    divided by the ideal 1; MRR = E[1 / (p + 1)].

    Args:
        name: `recall@K`, `hit_ratio@K`, `ndcg@K` or `mrr`.
        better, equal: int [N] from `rank_counts`.

    >>> metric_per_row("recall@2", np.array([0, 1, 2]), np.array([1, 2, 1])).tolist()
    [1.0, 0.5, 0.0]
    """
    better, equal = better.astype(np.int64), equal.astype(np.int64)
    kind, _, k = name.partition("@")
    if kind == "mrr":
        longest = int((better + equal).max(initial=0))
        return _prefix_mean(1.0 / np.arange(1, longest + 1), better, equal)
    if kind == "ndcg":
        return _prefix_mean(1.0 / np.log2(np.arange(2, int(k) + 2)), better, equal)
    return np.clip(int(k) - better, 0, equal) / equal


def _prefix_mean(gains: np.ndarray, better: np.ndarray, equal: np.ndarray) -> np.ndarray:
    """Mean of `gains[p]` (0 beyond its end) for p in better .. better + equal - 1, per row: float [N]."""
    total = np.concatenate([[0.0], np.cumsum(gains)])
    end = np.minimum(better + equal, len(gains))
    return (total[end] - total[np.minimum(better, len(gains))]) / equal
