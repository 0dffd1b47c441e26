"""Ranking metrics against arithmetic, and ties against an enumeration of every order."""

import itertools
from math import log2

import numpy as np
import pytest
import torch
from torchmetrics.functional import retrieval

from src.core.errors import UserError
from src.core.metrics import MetricsConfig, metrics_from_ranks, rank_counts


def evaluate(better: list[int], equal: list[int], ks: list[int]) -> dict[str, float]:
    return metrics_from_ranks(np.array(better), np.array(equal), ks)


@pytest.mark.parametrize("masked", [False, True])
def test_agrees_with_torchmetrics(masked):
    random = torch.Generator().manual_seed(0)
    scores, targets = torch.rand(200, 37, generator=random), torch.randint(37, (200,), generator=random)
    excluded = torch.rand(200, 37, generator=random) < 0.3
    better, equal = rank_counts(scores, targets, excluded if masked else None)

    ours = metrics_from_ranks(better.numpy(), equal.numpy(), [1, 5, 10])

    if masked:  # out of the ranking: behind everything
        scores = scores.masked_fill(excluded.scatter(1, targets[:, None], False), 0.0)
    relevant = torch.nn.functional.one_hot(targets, 37).bool()

    def mean(measure, **options) -> float:
        return torch.stack([measure(s, r, **options) for s, r in zip(scores, relevant, strict=True)]).mean().item()

    assert ours["mrr"] == pytest.approx(mean(retrieval.retrieval_reciprocal_rank), rel=1e-5)
    for k in (1, 5, 10):
        assert ours[f"recall@{k}"] == pytest.approx(mean(retrieval.retrieval_recall, top_k=k), rel=1e-5)
        assert ours[f"hit_ratio@{k}"] == pytest.approx(mean(retrieval.retrieval_hit_rate, top_k=k), rel=1e-5)
        assert ours[f"ndcg@{k}"] == pytest.approx(mean(retrieval.retrieval_normalized_dcg, top_k=k), rel=1e-5)


def test_without_ties():
    # Targets on positions 0, 2 and 5.
    result = evaluate([0, 2, 5], [1, 1, 1], [1, 3, 6])

    assert result["recall@1"] == pytest.approx(1 / 3)
    assert result["recall@3"] == pytest.approx(2 / 3)
    assert result["recall@6"] == 1.0
    assert result["ndcg@1"] == pytest.approx((1 + 0 + 0) / 3)
    assert result["ndcg@3"] == pytest.approx((1 + 1 / log2(4) + 0) / 3)
    assert result["ndcg@6"] == pytest.approx((1 + 1 / log2(4) + 1 / log2(7)) / 3)
    assert result["mrr"] == pytest.approx((1 + 1 / 3 + 1 / 6) / 3)
    assert [result[f"hit_ratio@{k}"] for k in (1, 3, 6)] == [result[f"recall@{k}"] for k in (1, 3, 6)]


def test_result_has_every_metric_and_plain_floats():
    result = evaluate([0], [1], [1, 10])

    assert set(result) == {f"{name}@{k}" for name in ("recall", "ndcg", "hit_ratio") for k in (1, 10)} | {"mrr"}
    assert all(type(value) is float for value in result.values())


def test_a_cutoff_beyond_the_catalogue_counts_everything():
    result = evaluate([2], [1], [100])

    assert (result["recall@100"], result["ndcg@100"]) == (1.0, pytest.approx(1 / log2(4)))


@pytest.mark.parametrize(
    "scores, target",
    [
        ([1.0, 1.0, 1.0, 1.0], 2),
        ([3.0, 1.0, 1.0, 0.0], 1),
        ([2.0, 2.0, 1.0, 1.0], 3),
        ([0.0, 5.0, 5.0, 5.0], 3),
        ([4.0, 3.0, 2.0, 1.0], 2),
    ],
)
def test_ties_are_the_mean_over_all_orders(scores, target):
    ks = [1, 2, 3]
    # Every permutation, sorted by score with a stable sort, is one equally likely way to break the ties.
    places = []
    for order in itertools.permutations(range(4)):
        ranked = sorted(order, key=lambda item: -scores[item])
        places.append(ranked.index(target))
    expected = {"mrr": np.mean([1 / (p + 1) for p in places])}
    for k in ks:
        expected[f"recall@{k}"] = expected[f"hit_ratio@{k}"] = np.mean([p < k for p in places])
        expected[f"ndcg@{k}"] = np.mean([(p < k) / log2(p + 2) for p in places])

    better, equal = rank_counts(torch.tensor([scores]), torch.tensor([target]))

    assert metrics_from_ranks(better.numpy(), equal.numpy(), ks) == pytest.approx(expected)


def test_a_constant_scorer_gets_exactly_chance():
    num_items, targets = 8, torch.arange(8)
    better, equal = rank_counts(torch.zeros(8, num_items), targets)

    result = metrics_from_ranks(better.numpy(), equal.numpy(), [1, 4, 8])

    assert [result[f"recall@{k}"] for k in (1, 4, 8)] == [1 / 8, 4 / 8, 8 / 8]
    assert result["ndcg@4"] == pytest.approx(sum(1 / log2(p + 2) for p in range(4)) / 8)
    assert result["mrr"] == pytest.approx(sum(1 / p for p in range(1, 9)) / 8)


def test_rank_counts_by_hand():
    scores = torch.tensor([[3.0, 1.0, 2.0, 2.0], [0.0, 0.0, 0.0, 1.0]])

    better, equal = rank_counts(scores, torch.tensor([2, 3]))

    assert (better.tolist(), equal.tolist()) == ([1, 0], [2, 1])


def test_excluded_items_leave_the_ranking_but_the_target_never_does():
    scores = torch.tensor([[3.0, 2.0, 1.0, 1.0], [3.0, 2.0, 1.0, 1.0]])
    excluded = torch.tensor([[True, False, False, True], [True, True, True, True]])
    before = excluded.clone()

    better, equal = rank_counts(scores, torch.tensor([2, 2]), excluded)

    # Row 0 keeps items 1 and 2; row 1 would keep nothing, were the target not kept.
    assert (better.tolist(), equal.tolist()) == ([1, 0], [1, 1])
    assert torch.equal(excluded, before)


def test_infinite_scores_rank_but_nan_is_refused():
    targets = torch.tensor([0])
    better, equal = rank_counts(torch.tensor([[-torch.inf, torch.inf, -torch.inf]]), targets)
    assert (better.tolist(), equal.tolist()) == ([1], [2])

    with pytest.raises(UserError, match="scores contain NaN; training diverged"):
        rank_counts(torch.tensor([[1.0, 0.0, torch.nan]]), targets)


def test_no_rows_is_an_error():
    with pytest.raises(UserError, match="no rows to evaluate"):
        evaluate([], [], [1])


@pytest.mark.parametrize(
    "ks, monitor, message",
    [
        ([], "mrr", r"metrics.ks=\[\]: must be a list of different integers >= 1"),
        ([0, 5], "mrr", r"metrics.ks=\[0, 5\]"),
        ([5, 5], "mrr", r"metrics.ks=\[5, 5\]"),
        ([1, 5], "ndcg@10", "metrics.monitor='ndcg@10': must be one of recall@1, "),
        ([1, 5], "ndcg", "metrics.monitor='ndcg'"),
    ],
)
def test_refused_settings(ks, monitor, message):
    with pytest.raises(UserError, match=message):
        MetricsConfig(ks=ks, monitor=monitor)


def test_default_settings():
    assert (MetricsConfig().ks, MetricsConfig().monitor) == ([1, 5, 10, 20], "ndcg@10")
    assert MetricsConfig(ks=[3], monitor="mrr").monitor == "mrr"
