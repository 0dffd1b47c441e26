"""Base losses by arithmetic, their negatives, and that each of them learns."""

from dataclasses import replace
from math import exp, log

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from src.core.errors import UserError
from src.student import objectives
from src.student.config import LOSSES, LossSettings, ModelConfig
from src.student.datamodule import Batch
from src.student.models import build_model
from src.student.objectives import (
    BaseLoss,
    Dros,
    bce,
    log_partition,
    propensity,
    rows_at_once,
    sample_negatives,
    sampled_softmax,
)

CPU = torch.device("cpu")
SCORES = torch.tensor([[0.5, -1.0, 2.0], [0.0, 3.0, 1.0]])


@pytest.fixture
def model(fill_with_ramp):
    return fill_with_ramp(build_model(ModelConfig("sasrec", 12, 4, 4, 5, 0.0))).eval()


@pytest.fixture
def batch(tiny_dataset) -> Batch:
    history, length, target = tiny_dataset.train.windows(5, 12)
    rows = torch.arange(len(target))
    return Batch(rows, torch.from_numpy(history).long(), torch.from_numpy(length), torch.from_numpy(target))


def base_loss(dataset, seed: int = 1, **settings) -> BaseLoss:
    return BaseLoss(LossSettings(**settings), dataset, max_seq_len=5, seed=seed, device=CPU)


def dros_terms(scores, weights, beta: float, items) -> torch.Tensor:
    return Dros(scores, weights, beta).term(items, scores.gather(1, items))


def test_bce_by_hand():
    loss = bce(SCORES[[0, 1], [2, 0]], SCORES[[0, 1], [1, 2]])

    positive = [log(1 + exp(-2)), log(1 + exp(0))]
    negative = [log(1 + exp(-1)), log(1 + exp(1))]
    assert loss.item() == pytest.approx((sum(positive) + sum(negative)) / 4)


def test_propensity_by_hand():
    weights = propensity([0, 2, 2], 4)  # counts 1, 0, 2, 0
    assert weights.tolist() == pytest.approx([(n / 7) ** 0.05 for n in (2, 1, 3, 1)])


def test_dros_by_hand():
    weights, beta = [0.5, 1.0, 0.25], 2.0

    losses = dros_terms(SCORES, torch.tensor(weights), beta, torch.tensor([[2, 0], [1, 1]]))

    def by_hand(row: int, item: int) -> float:
        scores = SCORES[row].tolist()
        powers = [exp(s * s * w / beta) for s, w in zip(scores, weights, strict=True)]
        return log(sum(powers) - powers[item] + exp((scores[item] - 1) ** 2 * weights[item] / beta))

    assert losses.tolist() == [pytest.approx([by_hand(0, 2), by_hand(0, 0)]), pytest.approx([by_hand(1, 1)] * 2)]


def test_dros_has_the_gradient_of_its_formula():
    scores = torch.tensor([[0.5, -1.0, 2.0], [0.3, 1.3, 1.0]], dtype=torch.float64, requires_grad=True)
    weights, items = torch.tensor([0.5, 1.0, 0.25], dtype=torch.float64), torch.tensor([[2, 0], [1, 1]])

    assert torch.autograd.gradcheck(lambda s: dros_terms(s, weights, 2.0, items), scores)


def test_dros_of_large_scores_is_finite():
    scores = torch.tensor([[40.0, -30.0, 1.0]], requires_grad=True)  # exp(40^2) overflows even float64

    losses = dros_terms(scores, torch.ones(3), 1.0, torch.tensor([[0, 1, 2]]))
    losses.sum().backward()

    # The largest of 900 and (40 - 1)^2, of 1600 and (-30 - 1)^2, of 1600.
    assert losses[0].tolist() == pytest.approx([39.0**2, 40.0**2, 40.0**2])
    assert torch.isfinite(scores.grad).all()


def test_sampled_softmax_with_every_item_is_cross_entropy(model, batch):
    hidden = model.encode(batch.windows, batch.length)

    positive, partition = sampled_softmax(*model.output_layer(), hidden, batch.target, torch.arange(12))

    loss = (partition - positive).mean()
    assert loss.item() == pytest.approx(F.cross_entropy(model.score(hidden), batch.target).item(), rel=1e-5)


def test_sampled_partition_is_unbiased(model, batch):
    hidden = model.encode(batch.windows[:1], batch.length[:1])
    target, scores = batch.target[:1], model.score(hidden)[0].double()
    random = torch.Generator().manual_seed(0)
    draws = torch.randint(12, (3000, 4), generator=random)

    with torch.no_grad():
        estimates = [sampled_softmax(*model.output_layer(), hidden, target, draw)[1] for draw in draws]
        partitions = torch.cat(estimates).double().exp()
    usable = (draws != target).any(1)  # nothing can be estimated from negatives that all are the target
    error = partitions[usable].std() / usable.sum() ** 0.5
    assert abs(partitions[usable].mean() - scores.exp().sum()) < 4 * error


def test_a_proposal_stands_for_the_probability_of_each_draw(model, batch):
    hidden = model.encode(batch.windows[:1], batch.length[:1])
    target, scores = batch.target[:1], model.score(hidden)[0].double()
    proposal = torch.arange(1.0, 13) / 78
    draws = torch.multinomial(proposal.expand(4000, -1), 4, True, generator=torch.Generator().manual_seed(0))

    with torch.no_grad():
        estimates = [sampled_softmax(*model.output_layer(), hidden, target, draw, proposal[draw])[1] for draw in draws]
        partitions = torch.cat(estimates).double().exp()
    error = partitions.std() / len(draws) ** 0.5
    assert abs(partitions.mean() - scores.exp().sum()) < 4 * error


def test_popular_negatives_are_half_uniform_and_half_as_often_as_targets(tiny_dataset):
    loss = base_loss(tiny_dataset, name="sampled_softmax", num_negatives=60_000, negatives="popular")
    drawn, probability = loss._draw(CPU)

    counts = np.bincount(tiny_dataset.train.targets, minlength=12)
    expected = (counts / counts.sum() + 1 / 12) / 2
    assert counts.min() < counts.max()
    np.testing.assert_allclose(probability, expected[drawn], rtol=1e-6)
    frequency = np.bincount(drawn, minlength=12) / 60_000
    assert (np.abs(frequency - expected) < 5 * (expected / 60_000) ** 0.5).all()


def test_negatives_are_uniform_over_what_is_left():
    history = torch.tensor([[3, 1, 3, 6, 6], [0, 6, 6, 6, 6]])  # 6 items; the first row repeats one
    batch = Batch(torch.arange(2), history, torch.tensor([3, 1]), torch.tensor([4, 5]))
    repeated = replace(batch, windows=history.repeat(4000, 1), target=batch.target.repeat(4000))

    drawn = sample_negatives(repeated, 6, torch.Generator().manual_seed(0)).reshape(4000, 2)

    for column, left in enumerate(([0, 2, 5], [1, 2, 3, 4])):
        counts = torch.bincount(drawn[:, column], minlength=6)
        assert counts.nonzero().flatten().tolist() == left
        expected = 4000 / len(left)
        assert (counts[left] - expected).abs().max() < 5 * expected**0.5


def test_negatives_draw_from_their_own_generator(tiny_dataset, model, batch):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first = base_loss(tiny_dataset, name="bce")(model, batch)
    assert torch.equal(torch.rand(2), expected)

    assert torch.equal(base_loss(tiny_dataset, name="bce")(model, batch).negative, first.negative)
    assert not torch.equal(base_loss(tiny_dataset, 2, name="bce")(model, batch).negative, first.negative)


def test_cross_entropy(tiny_dataset, model, batch):
    scored = base_loss(tiny_dataset, name="ce")(model, batch)

    log_softmax = model(batch.windows, batch.length).log_softmax(1)
    assert scored.loss.item() == pytest.approx(-log_softmax[batch.row, batch.target].mean().item(), rel=1e-5)
    assert scored.terms == {"loss_ce": scored.loss}
    assert scored.negative is None


@pytest.mark.parametrize("chunk", [1, 5, 32, 100])
@pytest.mark.parametrize("equally", [True, False])
def test_log_partition_in_chunks_is_logsumexp(model, batch, chunk, equally):
    weight, bias = (part.detach().double().float() for part in model.output_layer())
    hidden = model.encode(batch.windows, batch.length).detach()
    rows = torch.full((32,), 0.25) if equally else torch.arange(32.0) - 7

    def outcome(partition):
        inputs = [part.clone().requires_grad_() for part in (weight, bias, hidden)]
        result = partition(*inputs)
        (result * rows).sum().backward()
        return [result, *(part.grad for part in inputs)]

    found = outcome(lambda w, b, h: log_partition(w, b, h, chunk=chunk, equally=equally))
    wanted = outcome(lambda w, b, h: (h @ w.T + b).logsumexp(1))
    for ours, plain in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


def test_log_partition_of_large_scores_is_finite():
    weight = torch.tensor([[1000.0], [-1000.0]], requires_grad=True)

    result = log_partition(weight, torch.zeros(2), torch.ones(1, 1), chunk=1, equally=True)
    result.sum().backward()

    assert result.item() == 1000.0  # log(e^1000 + e^-1000)
    assert weight.grad.tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("candidates", [None, torch.tensor([[3, 0]] * 32)])
def test_cross_entropy_in_chunks_is_that_of_all_scores(fill_with_ramp, tiny_dataset, batch, tied, candidates):
    """With a teacher's ranking beside it, whose partition and scores have gradients, too."""
    config = ModelConfig("sasrec", 12, 8, 8, 5, 0.0, tied_output=tied)
    outcomes = []
    for chunk in (None, 7):
        model = fill_with_ramp(build_model(config))
        scored = base_loss(tiny_dataset, name="ce", loss_chunk=chunk)(model, batch, candidates)
        loss = scored.loss
        if candidates is not None:
            partition = scored.log_partition if scored.scores is None else scored.scores.logsumexp(1, keepdim=True)
            loss = loss + ((partition - scored.candidates) * torch.arange(32.0)[:, None]).mean()
            assert (scored.scores is None) == (chunk is not None)
        loss.backward()
        outcomes.append([loss, *(parameter.grad for parameter in model.parameters())])
    assert len(outcomes[0]) > 10
    for whole, parts in zip(*outcomes, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def test_no_step_holds_the_scores_of_more_rows_than_a_chunk(tiny_dataset, model, batch, monkeypatch):
    sizes = []

    def recorded(hidden, weight, bias):
        sizes.append(len(hidden))
        return scores_of(hidden, weight, bias)

    scores_of = objectives._chunk_of_scores
    monkeypatch.setattr(objectives, "_chunk_of_scores", recorded)
    base_loss(tiny_dataset, name="ce", loss_chunk=10)(model, batch).loss.backward()
    assert sizes == [10, 10, 10, 2]


@pytest.mark.parametrize(
    "device, num_items, rows", [("cpu", 12_000, 64), ("cpu", 1000, 262), ("cuda", 300_000, 223), ("cuda", 10**7, 64)]
)
def test_rows_at_once(device, num_items, rows):
    # 2^18 scores of a CPU's cache / 1000 items; 2^26 on a GPU / 300,000; never fewer than 64.
    assert rows_at_once(num_items, torch.device(device)) == rows


def test_bce_dros_is_the_weighted_sum(tiny_dataset, model, batch):
    scored = base_loss(tiny_dataset, name="bce_dros", dros_weight=0.3, dros_beta=2.0)(model, batch)

    weights = propensity(tiny_dataset.train.targets, 12)
    plain = bce(scored.scores.gather(1, batch.target[:, None])[:, 0], scored.negative)
    robust = dros_terms(scored.scores, weights, 2.0, batch.target[:, None]).mean()
    assert scored.loss.item() == pytest.approx((plain + 0.3 * robust).item())
    assert {name: value.item() for name, value in scored.terms.items()} == {
        "loss_bce": plain.item(),
        "loss_dros": robust.item(),
    }
    off = base_loss(tiny_dataset, name="bce_dros", dros_weight=0.0)(model, batch)
    assert list(off.terms) == ["loss_bce"]


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_learns(tiny_dataset, batch, name):
    torch.manual_seed(0)
    model = build_model(ModelConfig("sasrec", 12, 8, 8, 5, 0.0))
    loss = base_loss(tiny_dataset, name=name, dros_weight=0.1, num_negatives=6)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def accuracy() -> float:
        return (model(batch.windows, batch.length).argmax(1) == batch.target).float().mean().item()

    for _ in range(300):
        optimizer.zero_grad()
        loss(model, batch).loss.backward()
        optimizer.step()
    assert accuracy() > 0.8


def test_too_few_items_for_a_negative(make_dataset):
    dataset = make_dataset([[0, 1, 2, 3, 4, 5]] * 2, num_items=6)
    with pytest.raises(UserError, match="student.loss=bce: a history of 5 and its target may leave no item"):
        base_loss(dataset, name="bce")


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["sasrec", "gru4rec", "caser"])
def test_mixed_precision_stays_within_one_percent(fill_with_ramp, tiny_dataset, batch, name, loss):
    model = fill_with_ramp(build_model(ModelConfig(name, 12, 8, 8, 5, 0.0)))

    def value(enabled: bool) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            return base_loss(tiny_dataset, name=loss)(model, batch).loss

    full, half = value(False), value(True)
    assert half.dtype == full.dtype and half.item() != full.item()
    assert half.item() == pytest.approx(full.item(), rel=1e-2)
