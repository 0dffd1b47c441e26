"""Full-ranking evaluation, by hand and against a plain sort."""

import json
from math import log2

import numpy as np
import pytest
import torch

from src.core.data_utils import Rows
from src.core.errors import UserError
from src.student import evaluator
from src.student.config import ModelConfig
from src.student.evaluator import (
    evaluate_model,
    evaluate_scores,
    history_mask,
    write_evaluation,
)
from src.student.models import build_model

CPU = torch.device("cpu")


def one_row(*sequence: int) -> Rows:
    """One row, of user 4, whose target is the last item."""
    return Rows(
        np.array(sequence, dtype=np.int32), np.array([0, 0, 0, 0, 0, len(sequence)]), np.array([len(sequence) - 1])
    )


def test_shown_and_masked_on_three_items():
    # History 0, target 1, scores 0.9 > 0.5 > 0.1: shown the target is second, without item 0 it is first.
    scores = torch.tensor([[0.9, 0.5, 0.1]])

    result = evaluate_scores(lambda index: scores[index], one_row(0, 1), 3, [1, 2])

    assert result.metrics == pytest.approx(
        {
            "recall@1": 0.0,
            "hit_ratio@1": 0.0,
            "ndcg@1": 0.0,
            "recall@2": 1.0,
            "hit_ratio@2": 1.0,
            "ndcg@2": 1 / log2(3),
            "mrr": 1 / 2,
        }
    )
    assert set(result.metrics_masked.values()) == {1.0}
    assert {name: value.tolist() for name, value in result.ranks.items()} == {
        "user": [4],
        "target": [1],
        "better": [1],
        "equal": [1],
        "better_masked": [0],
        "equal_masked": [1],
    }


def test_a_target_in_its_own_history_stays():
    scores = torch.tensor([[0.9, 0.5, 0.1]])

    result = evaluate_scores(lambda index: scores[index], one_row(1, 0, 1), 3, [1])

    assert (result.metrics["recall@1"], result.metrics_masked["recall@1"]) == (0.0, 1.0)


def test_history_mask_sees_the_whole_history(make_dataset):
    dataset = make_dataset([[0, 1, 2, 3, 0, 4], [5, 4, 4, 2]], num_items=7, max_seq_len=2)

    mask = history_mask(dataset.test, 7)

    # All of it, not the window of 2; the target (4, then 2) is not part of its history.
    assert mask.tolist() == [
        [item in {0, 1, 2, 3} for item in range(7)],
        [item in {5, 4} for item in range(7)],
    ]
    assert mask.dtype == torch.bool


def test_chunks_and_an_independent_sort_agree(make_dataset, monkeypatch):
    monkeypatch.setattr(evaluator, "_MOST_SCORES", 3 * 11 + 5)  # three of 8 users at a time
    num_items = 11
    sequences = [[(user * 2 + place * (1 + user % 3)) % num_items for place in range(6)] for user in range(8)]
    dataset = make_dataset(sequences, num_items)
    # All scores of a row differ: a permutation of 0..10.
    scores = torch.tensor(
        [[float((7 * item + 3 * user) % num_items) for item in range(num_items)] for user in range(8)]
    )
    ks = [1, 3, 5]

    result = evaluate_scores(lambda index: scores[index], dataset.test, num_items, ks)

    for masked, metrics in ((False, result.metrics), (True, result.metrics_masked)):
        recall, ndcg, reciprocal = {k: [] for k in ks}, {k: [] for k in ks}, []
        for user, sequence in enumerate(sequences):
            history, target = sequence[:-1], sequence[-1]
            row = scores[user].numpy().copy()
            if masked:
                row[[item for item in history if item != target]] = -np.inf
            place = np.argsort(-row).tolist().index(target)
            for k in ks:
                recall[k].append(float(place < k))
                ndcg[k].append(1 / log2(place + 2) if place < k else 0.0)
            reciprocal.append(1 / (place + 1))
        for k in ks:
            assert metrics[f"recall@{k}"] == pytest.approx(np.mean(recall[k]))
            assert metrics[f"ndcg@{k}"] == pytest.approx(np.mean(ndcg[k]))
        assert metrics["mrr"] == pytest.approx(np.mean(reciprocal))
    assert result.metrics != result.metrics_masked
    assert result.ranks["user"].tolist() == list(range(8))


def test_a_chunk_has_one_user_at_least_and_not_more_scores_than_memory():
    assert [len(index) for index in evaluator._chunks(700, 100)] == [512, 188]
    assert [len(index) for index in evaluator._chunks(250, 300_000)] == [111, 111, 28]  # 2^25 / 300,000
    assert [len(index) for index in evaluator._chunks(2, 10**9)] == [1, 1]


def test_an_item_that_stands_twice_in_a_history_is_taken_out_once():
    # History 0 0 2 1 with target 1: of 0 (better) and 2 (equal to the target) nothing is left.
    scores = torch.tensor([[0.9, 0.5, 0.5, 0.1]])

    ranks = evaluate_scores(lambda index: scores[index], one_row(0, 0, 2, 1, 1), 4, [1]).ranks

    assert {name: ranks[name].tolist() for name in ("better", "equal", "better_masked", "equal_masked")} == {
        "better": [1],
        "equal": [2],
        "better_masked": [0],
        "equal_masked": [1],
    }


def test_evaluate_model_turns_dropout_off_and_restores_the_mode(tiny_dataset, fill_with_ramp):
    model = fill_with_ramp(build_model(ModelConfig("sasrec", 12, 8, 8, 5, 0.5)))
    model.train()

    first = evaluate_model(model, tiny_dataset.test, tiny_dataset, [1, 5], CPU)
    again = evaluate_model(model, tiny_dataset.test, tiny_dataset, [1, 5], CPU)

    assert first.metrics == again.metrics
    assert model.training
    model.eval()
    evaluate_model(model, tiny_dataset.test, tiny_dataset, [1, 5], CPU)
    assert not model.training


def test_evaluate_model_ranks_by_the_models_scores(tiny_dataset, fill_with_ramp):
    model = fill_with_ramp(build_model(ModelConfig("sasrec", 12, 8, 8, 5, 0.0))).eval()
    history, length, target = tiny_dataset.valid.windows(5, 12)
    with torch.no_grad():
        scores = model(torch.from_numpy(history), torch.from_numpy(length)).numpy()

    ranks = evaluate_model(model, tiny_dataset.valid, tiny_dataset, [5], CPU).ranks

    expected = [int((row > row[item]).sum()) for row, item in zip(scores, target, strict=True)]
    assert ranks["better"].tolist() == expected


def test_mode_is_restored_after_an_error(tiny_dataset, fill_with_ramp):
    model = fill_with_ramp(build_model(ModelConfig("sasrec", 12, 8, 8, 5, 0.0))).train()
    with torch.no_grad():
        model.output.bias[3] = torch.nan

    with pytest.raises(UserError, match="NaN"):
        evaluate_model(model, tiny_dataset.test, tiny_dataset, [5], CPU)
    assert model.training


def test_no_rows(tiny_dataset):
    empty = tiny_dataset.test.select(np.array([], dtype=int))
    with pytest.raises(UserError, match="no rows to evaluate"):
        evaluate_scores(lambda index: torch.zeros(len(index), 12), empty, 12, [1])


def test_written_evaluation(tmp_path):
    scores = torch.tensor([[0.9, 0.5, 0.1]])
    evaluation = evaluate_scores(lambda index: scores[index], one_row(0, 1), 3, [2])

    write_evaluation(tmp_path / "eval.json", tmp_path / "ranks.npz", evaluation, {"model": "sasrec"})

    written = json.loads((tmp_path / "eval.json").read_text())
    assert written == {
        "model": "sasrec",
        "metrics": evaluation.metrics,
        "metrics_masked": evaluation.metrics_masked,
    }
    with np.load(tmp_path / "ranks.npz") as ranks:
        assert {name: ranks[name].tolist() for name in ranks} == {
            name: value.tolist() for name, value in evaluation.ranks.items()
        }
