"""Distillation losses by arithmetic, and what must hold for any of them."""

from math import exp, log

import pytest
import torch

from src.distill.config import RankingWeights
from src.distill.kd_losses import (
    Term,
    alignment_loss,
    average_over_batch,
    candidate_weights,
    compute,
    official_losses,
    positive_losses,
    softmax_losses,
    standing_for_all,
    weighted_mean,
)

SCORES = torch.tensor([[0.5, -1.0, 2.0, 1.0, 0.0], [3.0, 2.0, 1.0, 0.0, -1.0]])
RANKING = torch.tensor([[3, 1, 0], [4, 0, 2]])
CONFIDENCE = torch.tensor([[0.0, 0.5, 1.0], [0.2, 0.2, 0.2]])


def ranking_loss(scores: torch.Tensor, ranking: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (weights * positive_losses(scores.gather(1, ranking))).sum(1)


def normalised(values: list[float]) -> list[float]:
    return [value / sum(values) for value in values]


POSITION = normalised([exp(-1), exp(-2), exp(-3)])


def test_position_alone():
    weights = candidate_weights(RANKING, CONFIDENCE, SCORES, RankingWeights(0.7, 0.0, 0.0))
    assert weights.tolist() == [pytest.approx(POSITION), pytest.approx(POSITION)]


def test_confidence_alone():
    weights = candidate_weights(RANKING, CONFIDENCE, SCORES, RankingWeights(0.0, 0.2, 0.0))
    assert weights.tolist() == [
        pytest.approx(normalised([1, exp(-0.5), exp(-1)])),
        pytest.approx([1 / 3, 1 / 3, 1 / 3]),
    ]


def test_a_low_temperature_trusts_the_nearest():
    weights = candidate_weights(RANKING, CONFIDENCE, SCORES, RankingWeights(0.0, 0.2, 0.0, 0.1))
    assert weights[0].tolist() == pytest.approx(normalised([1, exp(-5), exp(-10)]), rel=1e-3)


def test_consistency_alone():
    # Top 3 of the student: {2, 3, 0} and {0, 1, 2}.
    weights = candidate_weights(RANKING, CONFIDENCE, SCORES, RankingWeights(0.0, 0.0, 1.0))
    assert weights.tolist() == [pytest.approx([0.5, 0.0, 0.5], abs=1e-6), pytest.approx([0.0, 0.5, 0.5], abs=1e-6)]


def test_the_mixture_normalises_all_but_the_consistency_and_then_the_row():
    weights = candidate_weights(RANKING, CONFIDENCE, SCORES, RankingWeights(0.3, 0.5, 0.1))

    confidence = normalised([1, exp(-0.5), exp(-1)])
    consistency = [1, 0, 1]
    mixed = [0.3 * p + 0.5 * c + 0.1 * o for p, c, o in zip(POSITION, confidence, consistency, strict=True)]
    assert weights[0].tolist() == pytest.approx(normalised(mixed), rel=1e-5)
    assert weights.sum(1).tolist() == pytest.approx([1.0, 1.0])
    assert (weights.shape, weights.dtype) == ((2, 3), torch.float32)


def test_vanished_confidences_become_uniform_not_nan():
    weights = candidate_weights(RANKING, torch.full((2, 3), 500.0), SCORES, RankingWeights(0.0, 1.0, 0.0))
    assert weights.flatten().tolist() == pytest.approx([1 / 3] * 6)


def test_no_agreement_at_all_becomes_uniform_not_nan():
    weights = candidate_weights(torch.tensor([[1, 4]]), torch.zeros(1, 2), SCORES[:1], RankingWeights(0.0, 0.0, 1.0))
    assert weights.tolist() == [pytest.approx([0.5, 0.5])]


def test_weights_carry_no_gradient():
    scores = SCORES.clone().requires_grad_()
    assert not candidate_weights(RANKING, CONFIDENCE, scores, RankingWeights(0.3, 0.5, 0.1)).requires_grad


def test_ranking_loss_by_hand():
    weights = torch.tensor([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]])

    losses = ranking_loss(SCORES, RANKING, weights)

    def minus_log_sigmoid(score: float) -> float:
        return log(1 + exp(-score))

    assert losses.tolist() == pytest.approx(
        [
            0.5 * minus_log_sigmoid(1.0) + 0.3 * minus_log_sigmoid(-1.0) + 0.2 * minus_log_sigmoid(0.5),
            minus_log_sigmoid(-1.0),
        ]
    )


def test_ranking_loss_reaches_the_candidates_only():
    scores = SCORES.clone().requires_grad_()
    weights = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]])

    ranking_loss(scores, RANKING, weights).sum().backward()

    expected = torch.zeros_like(SCORES)
    expected.scatter_(1, RANKING, -weights * torch.sigmoid(-SCORES.gather(1, RANKING)))  # d/ds -log sigma(s)
    torch.testing.assert_close(scores.grad, expected)


def test_ranking_loss_of_extreme_scores_is_finite():
    losses = ranking_loss(torch.tensor([[-1e4, 1e4]]), torch.tensor([[0, 1]]), torch.tensor([[1.0, 1.0]]))
    assert losses.tolist() == [pytest.approx(1e4)]


def test_official_losses_by_hand():
    losses = official_losses(SCORES.gather(1, RANKING), SCORES[[0, 1], [4, 0]])  # negatives score 0 and 3

    def minus_log_sigmoid(score: float) -> float:
        return log(1 + exp(-score))

    for row, negative in enumerate((0.0, 3.0)):
        expected = [minus_log_sigmoid(SCORES[row, item]) + minus_log_sigmoid(1 - negative) for item in RANKING[row]]
        assert losses[row].tolist() == pytest.approx(expected)


def test_softmax_losses_by_hand():
    losses = softmax_losses(SCORES.logsumexp(1, keepdim=True), SCORES.gather(1, RANKING))
    for row in range(2):
        partition = sum(exp(score) for score in SCORES[row].tolist())
        assert losses[row].tolist() == pytest.approx([log(partition) - SCORES[row, i].item() for i in RANKING[row]])


def test_the_average_over_the_batch_makes_the_mean_of_all_pairs():
    """What upstream's product of [B, 1] and [B] comes to, mean_i(w_ik) * mean_j(l_jk), as a loss for each row."""
    losses, weights = torch.tensor([[1.0, 2.0], [5.0, 7.0]]), torch.tensor([[0.5, 0.25], [0.125, 1.0]])

    rows = (weights * average_over_batch(losses, torch.tensor([True, True]))).sum(1)

    assert rows.tolist() == [0.5 * 3.0 + 0.25 * 4.5, 0.125 * 3.0 + 1.0 * 4.5]
    pairs = sum(weights[i, k] * losses[j, k] for i in range(2) for j in range(2) for k in range(2)) / 4
    assert rows.mean().item() == pytest.approx(pairs.item())


def test_the_average_over_the_batch_leaves_rows_without_a_teacher_out():
    losses = torch.tensor([[1.0, 2.0], [torch.nan, torch.inf], [5.0, 8.0]])
    assert average_over_batch(losses, torch.tensor([True, False, True])).tolist() == [[3.0, 5.0]]
    assert average_over_batch(losses, torch.tensor([False] * 3)).tolist() == [[0.0, 0.0]]


def test_one_confidence_per_row_scales_the_row():
    gammas = RankingWeights(0.0, 0.5, 0.0)
    distances = torch.tensor([[0.0], [2.0]])
    weights = candidate_weights(RANKING, distances, SCORES, gammas, per_sequence=True)
    assert weights.tolist() == [pytest.approx([0.5] * 3), pytest.approx([0.5 * exp(-2)] * 3)]
    best_only = candidate_weights(RANKING[:, :1], distances, SCORES, gammas, per_sequence=True)
    assert best_only[:, 0].tolist() == pytest.approx([0.5, 0.5 * exp(-2)])  # a single candidate is scaled, too


def test_alignment_loss_by_hand():
    student = torch.tensor([[1.0, 0.0], [1.0, 1.0], [2.0, 0.0], [1.0, 2.0]])
    teacher = torch.tensor([[0.0, 3.0], [2.0, 0.0], [-5.0, 0.0], [10.0, 20.0]])

    losses = alignment_loss(student, teacher)

    # Orthogonal, 45 degrees, opposite, parallel.
    assert losses.tolist() == pytest.approx([1.0, 1 - 2**-0.5, 2.0, 0.0], abs=1e-6)


def test_alignment_loss_ignores_length():
    student, teacher = torch.tensor([[1.0, 2.0, -1.0]]), torch.tensor([[0.5, -1.0, 4.0]])
    torch.testing.assert_close(alignment_loss(7 * student, teacher / 3), alignment_loss(student, teacher))


def test_samples_do_not_touch_each_other():
    order = torch.tensor([1, 0])
    gammas = RankingWeights(0.3, 0.5, 0.1)
    weights = candidate_weights(RANKING, CONFIDENCE, SCORES, gammas)

    permuted = candidate_weights(RANKING[order], CONFIDENCE[order], SCORES[order], gammas)
    assert torch.equal(permuted, weights[order])
    assert torch.equal(
        ranking_loss(SCORES[order], RANKING[order], permuted), ranking_loss(SCORES, RANKING, weights)[order]
    )
    first, second = SCORES[:, :3], SCORES[:, 2:]
    assert torch.equal(alignment_loss(first[order], second[order]), alignment_loss(first, second)[order])


def test_weighted_mean_divides_by_the_batch():
    losses = torch.tensor([1.0, 2.0, 3.0, 6.0])

    assert weighted_mean(losses, torch.ones(4, dtype=torch.bool)).item() == (1 + 2 + 3 + 6) / 4
    assert weighted_mean(losses, torch.tensor([True, False, False, True])).item() == (1 + 6) / 4
    assert weighted_mean(losses, torch.tensor([0.5, 0.0, 1.0, 0.25])).item() == (0.5 + 3 + 1.5) / 4


@pytest.mark.parametrize("mask", [[True, False, True, False], [0.25, 1.0, 0.0, 0.75], [False] * 4, [True] * 4], ids=str)
def test_a_selection_and_the_rest_add_up_to_everything(mask):
    losses = torch.tensor([1.5, 0.25, 3.0, 0.5])
    weights = torch.tensor(mask).float()

    total = weighted_mean(losses, weights) + weighted_mean(losses, 1 - weights)

    assert total.item() == pytest.approx(weighted_mean(losses, torch.ones(4)).item())


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_nothing_selected_is_zero_with_zero_gradient_whatever_the_losses(dtype):
    losses = torch.tensor([1.0, torch.inf, torch.nan, -torch.inf], requires_grad=True)

    mean = weighted_mean(losses, torch.zeros(4, dtype=dtype))
    mean.backward()

    assert mean.item() == 0.0
    assert losses.grad.tolist() == [0.0, 0.0, 0.0, 0.0]


def test_an_unselected_loss_that_is_not_finite_spoils_nothing():
    losses = torch.tensor([2.0, torch.nan, torch.inf], requires_grad=True)

    mean = weighted_mean(losses, torch.tensor([True, False, False]))
    mean.backward()

    assert mean.item() == pytest.approx(2 / 3)
    assert losses.grad.tolist() == pytest.approx([1 / 3, 0, 0])


def test_a_selected_loss_that_is_not_finite_shows():
    assert torch.isnan(weighted_mean(torch.tensor([2.0, torch.nan]), torch.tensor([True, True])))


def test_weights_keep_the_dtype_of_the_losses():
    assert weighted_mean(torch.ones(2, dtype=torch.float64), torch.tensor([0.5, 1.0])).dtype == torch.float64


def test_the_distillation_loss_is_the_weighted_sum_of_its_terms_under_the_mask():
    terms = {
        "ranking": Term(weight=0.5, losses=torch.tensor([1.0, 2.0, 3.0, 6.0])),
        "alignment": Term(weight=0.25, losses=torch.tensor([4.0, 0.0, 8.0, 2.0])),
    }

    loss, means = compute(terms, mask=torch.tensor([True, False, False, True]))

    assert {name: mean.item() for name, mean in means.items()} == {"loss_ranking": 7 / 4, "loss_alignment": 6 / 4}
    assert loss.item() == 0.5 * 7 / 4 + 0.25 * 6 / 4


@pytest.mark.parametrize("mask", [[True, False, True, False], [0.25, 1.0, 0.0, 0.75], [False] * 4], ids=str)
def test_a_mask_and_the_rest_have_the_distillation_loss_of_everything(mask):
    terms = {"ranking": Term(weight=0.7, losses=torch.tensor([1.5, 0.25, 3.0, 0.5]))}
    mask = torch.tensor(mask).float()

    total = compute(terms, mask=mask)[0] + compute(terms, mask=1 - mask)[0]

    assert total.item() == pytest.approx(compute(terms, mask=torch.ones(4))[0].item())


@pytest.mark.parametrize("mask", [[True, False, True, False], [0.25, 0.0, 0.0, 0.75]], ids=str)
def test_what_stands_for_all_has_the_mean_over_what_is_selected(mask):
    losses, weights = torch.tensor([1.5, 2.0, 3.0, 0.5]), torch.tensor(mask)
    losses[~weights.bool()] = torch.nan

    mean = compute({"ranking": Term(weight=1.0, losses=losses)}, mask=standing_for_all(weights))[0]

    kept = weights.bool()
    assert mean.item() == pytest.approx(((losses * weights)[kept].sum() / weights.sum()).item())


@pytest.mark.parametrize("mask", [torch.ones(4, dtype=torch.bool), torch.zeros(4), torch.zeros(4, dtype=torch.bool)])
def test_everything_stands_for_all_as_it_is_and_nothing_for_nothing(mask):
    assert torch.equal(standing_for_all(mask), mask.float())


def test_the_gradient_of_the_loss_does_not_reach_the_named_means():
    losses = torch.tensor([1.0, 2.0], requires_grad=True)
    loss, means = compute({"ranking": Term(weight=0.5, losses=losses)}, mask=torch.tensor([1.0, 0.5]))
    loss.backward()
    assert losses.grad.tolist() == [0.25, 0.125] and not means["loss_ranking"].requires_grad
