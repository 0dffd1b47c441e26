"""Metrics of recommended lists: by hand, and as RecTools and RecBole have them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from src.core.metrics import MetricsConfig
from src.student.evaluator import evaluate_scores
from src.student.lists import ListMetrics, gini_index

GOLDEN = json.loads((Path(__file__).parent / "golden_lists.json").read_text())


def known(k: int, counts: list[int], **changes) -> ListMetrics:
    values = {"users": np.array(counts), "num_users": 8, "vectors": None} | changes
    return ListMetrics(k=k, counts=np.array(counts), **values)


@pytest.mark.parametrize("form", [np.array, sparse.csr_matrix])
def test_as_rectools_and_recbole_have_them(form):
    interactions, lists = np.array(GOLDEN["interactions"]), np.array(GOLDEN["lists"])
    counts = np.bincount(interactions[:, 1], minlength=GOLDEN["num_items"])
    users = len(np.unique(interactions[:, 0]))
    metrics = known(4, counts, num_users=users, vectors=form(np.array(GOLDEN["vectors"]))).of_lists(lists)
    assert metrics == pytest.approx({f"{name}@4": value for name, value in GOLDEN["metrics"].items()}, abs=1e-9)


def test_by_hand():
    metrics = known(2, [4, 2, 1, 0]).of_lists(np.array([[0, 1], [0, 3]]))
    assert metrics == pytest.approx(
        {
            "item_coverage@2": 3 / 4,
            "gini_index@2": (3 * 2 + 1 * 1 - 1 * 1 - 3 * 0) / (4 * 4),  # counts 0, 1, 1, 2
            "average_popularity@2": ((4 + 2) / 2 + (4 + 0) / 2) / 2,
            "novelty@2": ((1 + 2) / 2 + (1 + 3) / 2) / 2,  # 8 users: log2(8 / 4), log2(8 / 2); nobody counts as one
        }
    )


def test_a_list_that_is_shorter_counts_what_it_has_and_an_empty_one_nothing():
    vectors = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    metrics = known(3, [4, 2, 1], vectors=vectors)
    short = metrics.of_lists(np.array([[0, 1, -1], [0, -1, -1], [-1, -1, -1]]))
    assert short["average_popularity@3"] == pytest.approx(((4 + 2) / 2 + 4) / 2)
    assert short["item_coverage@3"] == pytest.approx(2 / 3)
    assert short["intra_list_diversity@3"] == pytest.approx((1 + 0) / 2)  # one pair at distance 1; no pair
    assert metrics.popularity(np.array([[2, 0, -1], [-1, -1, -1]])).tolist() == [2.5, 0]


def test_where_every_history_holds_every_item_there_is_nothing_to_tell():
    assert known(2, [4, 2]).of_lists(np.array([[-1, -1], [-1, -1]])) == {}


def test_inequality():
    assert gini_index(np.array([5, 5, 5, 5])) == 0 and gini_index(np.array([0, 0, 0])) == 0
    assert gini_index(np.array([7, 0, 0, 0])) == pytest.approx(1 - 1 / 4)


def test_the_lists_of_an_evaluation(make_dataset):
    dataset = make_dataset([[0, 1, 2, 3]], num_items=4)  # of the training rows only 1 is a target
    scores = torch.tensor([[0.4, 0.3, 0.2, 0.1]])
    lists = ListMetrics.of(dataset, 2)
    evaluation = lists.add_to(evaluate_scores(lambda index: scores[index], dataset.test, 4, [1], top_k=lists.k))
    assert {part: found.tolist() for part, found in evaluation.lists.items()} == {
        "metrics": [[0, 1]],
        "metrics_masked": [[3, -1]],
    }
    assert evaluation.ranks["popularity"].tolist() == [0.5] and evaluation.ranks["popularity_masked"].tolist() == [0]
    assert evaluation.beyond["metrics"]["item_coverage@2"] == 0.5


@pytest.mark.parametrize(("monitor", "length"), [("ndcg@5", 5), ("recall@10", 10), ("mrr", 20)])
def test_how_long_a_list_is(monitor, length):
    assert MetricsConfig(ks=[5, 10, 20], monitor=monitor).list_length == length
