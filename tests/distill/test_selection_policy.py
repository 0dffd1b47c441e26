"""Which samples are distilled: exact budgets, measures by hand, seeds, memory, and the look-ahead of `meta`."""

from math import log

import pytest
import torch
import torch.nn.functional as F

from src.core.errors import UserError
from src.core.settings import parse_choice
from src.distill import active_config
from src.distill.active_config import SCHEMAS, ActiveConfig
from src.distill.selection_policy import (
    MEASURES,
    POLICIES,
    Budget,
    SelectionPolicy,
    SelectionPolicyAll,
    StudentInfo,
    TeacherInfo,
    build_selection_policy,
    fill_budget,
)
from src.student.config import ModelConfig
from src.student.datamodule import Batch
from src.student.models import build_model


def parse(**section) -> ActiveConfig:
    return parse_choice(SCHEMAS, section, "active", by=("strategy",))


def build(dataset, seed=1, **section) -> SelectionPolicy:
    policy = build_selection_policy(parse(**section))
    policy.start(dataset, seed)
    return policy


UNCERTAIN = {"name": "uncertainty", "strategy": "uncertainty", "measure": "student_loss", "budget_per": "batch"}
RANDOM = {"name": "random", "strategy": "random"}
META = {"name": "meta", "strategy": "meta", "validation_batch_size": 3, "validation_temperature": 3.0}


def batch_of(rows) -> Batch:
    rows = torch.tensor(rows)
    return Batch(rows, torch.zeros(len(rows), 4, dtype=torch.int64), torch.ones_like(rows), torch.zeros_like(rows))


def teacher_of(count: int, known=None, ranking=None, confidence=None) -> TeacherInfo:
    return TeacherInfo(
        torch.zeros(count, 2, dtype=torch.int64) if ranking is None else torch.tensor(ranking),
        torch.zeros(count, 2) if confidence is None else torch.tensor(confidence),
        torch.ones(count, dtype=torch.bool) if known is None else torch.tensor(known),
    )


def student_of(scores, target=None) -> StudentInfo:
    scores = torch.as_tensor(scores, dtype=torch.float32)
    target = torch.zeros(len(scores), dtype=torch.int64) if target is None else torch.tensor(target)
    return StudentInfo(scores, target, torch.zeros(len(scores), 1), None, lambda: torch.zeros_like(scores))


def losing(values) -> StudentInfo:
    """A student whose losses have the order of `values`: log(1 + exp(value)) over two items."""
    return student_of([[0.0, value] for value in values])


def test_all_selects_every_sample():
    mask = SelectionPolicyAll().select(batch_of([0, 1, 2]), teacher_of(3), losing([1, 2, 3]))
    assert mask.tolist() == [True, True, True] and mask.dtype == torch.bool


# --- budgets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.07, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("sizes", [[20], [7, 7, 6], [1] * 20, [3, 16, 1]])
def test_a_budget_is_kept_by_batch_and_by_epoch(ratio, sizes):
    budget = Budget(ratio, 20)
    for _ in range(3):
        taken = 0
        for count in sizes:
            chosen = int(budget.take(torch.rand(count), torch.ones(count, dtype=torch.bool)).sum())
            assert abs(chosen - ratio * count) < 1
            taken += chosen
        assert taken == int(ratio * 20 + 0.5)


def test_a_budget_is_a_share_of_the_rows_with_a_teacher():
    budget, known = Budget(0.5, 8), torch.tensor([True, False, True, True, False, True, False, False])
    chosen = budget.take(torch.arange(8.0), known)
    assert chosen.nonzero()[:, 0].tolist() == [3, 5]


@pytest.mark.parametrize(
    ("values", "total", "expected"),
    [
        ([1, 1, 2], 1, [0.25, 0.25, 0.5]),
        ([1, 1, 8], 2, [0.5, 0.5, 1]),
        ([1, 3, 8], 2, [0.25, 0.75, 1]),
        ([-1, 2, -3, 2], 1, [0, 0.5, 0, 0.5]),
        ([-1, 5, 1e-3, -2], 2, [0, 1, 1, 0]),  # only two help
        ([-1, 5, 1, -2], 3, [0, 1, 1, 0]),
        ([-1, -2], 1, [0, 0]),
        ([2, 1], 2, [1, 1]),
    ],
)
def test_fill_budget_by_hand(values, total, expected):
    assert fill_budget(torch.tensor(values, dtype=torch.float32), total).tolist() == pytest.approx(expected)


def test_fill_budget_spends_it_exactly():
    values = torch.randn(200, generator=torch.Generator().manual_seed(0)).exp() ** 3
    weights = fill_budget(values, 60)
    assert weights.sum().item() == pytest.approx(60, rel=1e-5)
    free = weights < 1
    assert torch.allclose(weights[free] / values[free], (weights[free] / values[free])[0].expand(int(free.sum())))


# --- random -------------------------------------------------------------------------------------------------


def random_rows(policy, epochs=3) -> list[list[int]]:
    chosen = []
    for _ in range(epochs):
        masks = [policy.select(batch_of(range(b, b + 8)), teacher_of(8), losing(range(8))) for b in (0, 8, 16, 24)]
        chosen.append(torch.cat(masks).nonzero()[:, 0].tolist())
    return chosen


def test_random_follows_its_seed_and_changes_with_the_epoch(tiny_dataset):
    def policy(seed):
        return build(tiny_dataset, seed, name="random", strategy="random", budget_ratio=0.5)

    one, again, other = random_rows(policy(1)), random_rows(policy(1)), random_rows(policy(2))
    assert one == again != other
    assert one[0] != one[1] != one[2]
    assert [len(rows) for rows in one] == [16, 16, 16]


def test_random_leaves_the_global_stream_alone(tiny_dataset):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    random_rows(build(tiny_dataset, **RANDOM, budget_ratio=0.5))
    assert torch.equal(torch.rand(4), expected)


# --- uncertainty --------------------------------------------------------------------------------------------


def measured(name, scores, target=None, ranking=None, confidence=None) -> list[float]:
    info = teacher_of(len(scores), ranking=ranking, confidence=confidence)
    return MEASURES[name](info, student_of(scores, target)).tolist()


def test_students_loss_and_entropy_by_hand():
    assert measured("student_loss", [[0.0, 0.0], [log(3), 0.0]], [0, 1]) == pytest.approx([log(2), log(4)])
    entropy = 0.75 * log(4 / 3) + 0.25 * log(4)
    assert measured("student_entropy", [[0.0, 0.0], [log(3), 0.0]]) == pytest.approx([log(2), entropy])


def test_teachers_confidence_by_hand():
    two = [[0.0, 0.0], [0.0, log(3)]]
    assert measured("teacher_confidence", [[0.0] * 3] * 2, confidence=two) == pytest.approx([0.5, 0.75])
    of_row = [[0.2], [1.5]]
    assert measured("teacher_confidence", [[0.0] * 3] * 2, confidence=of_row) == pytest.approx([-0.2, -1.5])


def test_disagreement_by_hand():
    scores = [[log(2), 0.0, 0.0]] * 2  # probabilities 1/2, 1/4, 1/4
    distances = [[0.0, log(3)]] * 2  # weights 3/4, 1/4
    found = measured("disagreement", scores, ranking=[[0, 1], [1, 2]], confidence=distances)
    assert found == pytest.approx([0.75 * log(2) + 0.25 * log(4), log(4)])
    found = measured("disagreement", scores, ranking=[[0, 1], [1, 2]], confidence=[[0.3], [0.3]])
    assert found == pytest.approx([0.5 * log(2) + 0.5 * log(4), log(4)])


@pytest.fixture
def eight_rows(make_dataset):
    return make_dataset([[0] * 11], num_items=2)


def test_a_budget_per_batch_takes_the_highest_of_the_batch(eight_rows):
    policy = build(eight_rows, **UNCERTAIN, budget_ratio=0.5)
    for _ in range(2):
        assert policy.select(batch_of([0, 1, 2, 3]), teacher_of(4), losing([1, 4, 2, 3])).tolist() == [0, 1, 0, 1]
        assert policy.select(batch_of([4, 5, 6, 7]), teacher_of(4), losing([8, 7, 6, 5])).tolist() == [1, 1, 0, 0]


def test_a_budget_per_epoch_takes_the_highest_of_the_epoch_before(eight_rows):
    policy = build(eight_rows, **{**UNCERTAIN, "budget_per": "epoch"}, budget_ratio=0.25)
    values = [1, 4, 2, 3, 8, 7, 6, 5]

    def epoch(order, values) -> list[int]:
        chosen = []
        for rows in (order[:3], order[3:]):
            mask = policy.select(batch_of(rows), teacher_of(len(rows)), losing([values[r] for r in rows]))
            chosen += [row for row, taken in zip(rows, mask.tolist(), strict=True) if taken]
        return sorted(chosen)

    assert epoch([0, 1, 2, 3, 4, 5, 6, 7], values) == [1, 4]  # by batch: nothing was measured before
    assert epoch([7, 6, 5, 4, 3, 2, 1, 0], [-v for v in values]) == [4, 5]
    assert epoch([3, 1, 0, 2, 5, 7, 4, 6], values) == [0, 2]  # lowest values, highest when they were negated


@pytest.mark.parametrize("measure", ["teacher_confidence", "disagreement"])
def test_a_measure_of_the_teacher_needs_its_ranking(eight_rows, measure):
    policy = build(eight_rows, **{**UNCERTAIN, "measure": measure})
    empty = TeacherInfo(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0), torch.ones(2, dtype=torch.bool))
    with pytest.raises(UserError, match=f"active.measure={measure}: needs the teacher's ranking.*use student_entropy"):
        policy.select(batch_of([0, 1]), empty, losing([1, 2]))


# --- meta ---------------------------------------------------------------------------------------------------


def meta(dataset, ratio, rows, seed=1) -> SelectionPolicy:
    section = {**META, "budget_ratio": ratio, "validation_batch_size": rows, "validation_temperature": 2.0}
    return build(dataset, seed, **section)


def students(dataset):
    tied = {"tied_output": True, "norm": "pre"}
    kinds = (("sasrec", {}), ("sasrec_plus", tied), ("sasrec", {**tied, "scores": "cosine"}), ("caser", {}))
    for name, changes in kinds:
        torch.manual_seed(0)
        yield build_model(ModelConfig(name, dataset.num_items, 6, 6, 5, 0.5, filter_sizes=(2, 3), **changes))


def inner_products(model, dataset, rows, losses_of) -> list[float]:
    """<grad L_valid, grad l_i> over the output layer, one backward pass a row."""
    model.eval()
    table = model.shared_table()
    table = None if table is None else table.detach().requires_grad_()
    weight, bias = model.output_layer(table)
    parameters = [weight if table is None else table, *([bias] if model.has_output_bias else [])]

    def hidden(part, index):
        history, length, target = map(torch.from_numpy, part.windows(5, dataset.pad_id, index))
        return model.encode(history, length, None if table is None else table.detach()).detach(), target

    valid, target = hidden(dataset.valid, None)
    wanted = torch.autograd.grad(F.cross_entropy(F.linear(valid, weight, bias) / 2, target), parameters)
    own, _ = hidden(dataset.train, rows)
    found = []
    for i in range(len(rows)):
        weight, bias = model.output_layer(table)
        gradient = torch.autograd.grad(losses_of(F.linear(own[i : i + 1], weight, bias))[0], parameters)
        found.append(sum((one * other).sum().item() for one, other in zip(wanted, gradient, strict=True)))
    return found


def test_meta_weighs_by_the_inner_product_of_the_gradients(tiny_dataset):
    rows = torch.tensor([3, 0, 17, 30, 8, 9]).numpy()
    candidates = torch.tensor([[1, 2], [5, 0], [3, 9], [11, 7], [4, 4], [6, 2]])
    for model in students(tiny_dataset):
        history, length, target = map(torch.from_numpy, tiny_dataset.train.windows(5, tiny_dataset.pad_id, rows))
        model.eval()
        hidden = model.encode(history, length, model.shared_table())
        scores = model.score(hidden, model.shared_table()).detach().requires_grad_()

        def losses_of(scores, candidates=candidates):
            return -F.logsigmoid(scores.gather(1, candidates[: len(scores)])).sum(1)

        def score_gradient(scores=scores):
            return torch.autograd.grad(losses_of(scores).sum(), scores)[0]

        expected = torch.tensor(
            [
                inner_products(model, tiny_dataset, rows[i : i + 1], lambda s, i=i: losses_of(s, candidates[i : i + 1]))
                for i in range(len(rows))
            ]
        )[:, 0]
        assert (expected > 0).any() and (expected < 0).any()
        model.train()
        info = StudentInfo(scores.detach(), target, hidden.detach(), model, score_gradient)
        policy = meta(tiny_dataset, 0.1, 1000)  # all validation rows
        state = torch.get_rng_state()
        weights = policy.select(Batch(torch.from_numpy(rows), history, length, target), teacher_of(6), info)
        assert torch.equal(state, torch.get_rng_state()) and model.training
        torch.testing.assert_close(weights, fill_budget(expected, 0.6), rtol=1e-3, atol=1e-5)


def test_meta_draws_its_validation_rows_from_its_seed(tiny_dataset):
    (model, *_) = students(tiny_dataset)

    def draws(seed):
        policy = meta(tiny_dataset, 0.5, 3, seed)
        return [policy._validation(model, torch.device("cpu"))[2].tolist() for _ in range(3)]

    assert draws(1) == draws(1) != draws(2)
    assert len(draws(1)[0]) == 3 and draws(1)[0] != draws(1)[1]


def test_meta_needs_the_teachers_ranking(tiny_dataset):
    empty = TeacherInfo(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0), torch.ones(2, dtype=torch.bool))
    with pytest.raises(UserError, match=r"active.strategy=meta: needs the teacher's ranking.*use random"):
        meta(tiny_dataset, 0.5, 3).select(batch_of([0, 1]), empty, losing([1, 2]))


# --- memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "section",
    [
        {"name": "random", "strategy": "random"},
        {"name": "uncertainty", "strategy": "uncertainty", "measure": "student_loss", "budget_per": "epoch"},
        {"name": "uncertainty", "strategy": "uncertainty", "measure": "student_loss", "budget_per": "batch"},
    ],
)
@pytest.mark.parametrize("steps", [3, 4, 6])  # within the first epoch, at its end, within the second
def test_a_restored_policy_goes_on_as_if_undisturbed(tiny_dataset, tmp_path, section, steps):
    random = torch.Generator().manual_seed(0)
    values = torch.rand(16, 8, generator=random)

    def step(policy, i):
        rows = range(8 * (i % 4), 8 * (i % 4) + 8)
        return policy.select(batch_of(rows), teacher_of(8), losing(values[i].tolist())).tolist()

    one, other = (build(tiny_dataset, seed, **section, budget_ratio=0.3) for seed in (1, 2))
    for i in range(steps):
        step(one, i)
    torch.save(one.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [step(one, i) for i in range(steps, 12)] == [step(other, i) for i in range(steps, 12)]


def test_a_restored_meta_goes_on_with_the_same_validation_rows(tiny_dataset):
    (model, *_) = students(tiny_dataset)
    one, other = (meta(tiny_dataset, 0.5, 3, seed) for seed in (1, 2))
    one._validation(model, torch.device("cpu"))
    other.load_state_dict(one.state_dict())
    assert torch.equal(*(p._validation(model, torch.device("cpu"))[2] for p in (one, other)))


# --- configuration ------------------------------------------------------------------------------------------


def test_build(tiny_dataset):
    assert isinstance(build(tiny_dataset, name="all", strategy="all", budget_ratio=1), SelectionPolicyAll)


@pytest.mark.parametrize(
    "section, message",
    [
        ({"name": "x", "strategy": "x"}, "active.strategy='x': must be one of all, random, uncertainty, cove"),
        ({"name": "x", "strategy": "all"}, r"active.name='x': must be active.strategy \(all\)"),
        ({"name": "all", "strategy": "all", "budget_ratio": 0.5}, "active.budget_ratio=0.5: must be 1.0, because"),
        ({**RANDOM, "budget_ratio": 0}, "active.budget_ratio=0.0: must be a number above"),
        ({**RANDOM, "budget_ratio": 1.5}, "active.budget_ratio=1.5: must be .* at most 1"),
        ({**UNCERTAIN, "measure": "x"}, "active.measure='x': must be one of student_entropy, student_loss, teacher_"),
        ({**UNCERTAIN, "measure": None}, "active.measure=None: "),
        ({**UNCERTAIN, "budget_per": "day"}, "active.budget_per='day': must be batch or epoch"),
        ({**RANDOM, "measure": "student_loss"}, "active.measure: unknown key"),
        ({"name": "meta", "strategy": "meta"}, "active.validation_batch_size=.*: .*missing"),
        ({**META, "validation_batch_size": 0}, "active.validation_batch_size=0: must be an integer >= 1"),
        ({**META, "validation_temperature": 0}, "active.validation_temperature=0.0: must be a number above 0"),
        ({**UNCERTAIN, "validation_batch_size": 3}, "active.validation_batch_size: unknown key"),
        ({"name": "all", "strategy": "all", "ratio": 0.5}, "active.ratio: unknown key"),
        ({"name": "all", "strategy": "all", "budget_ratio": "half"}, "active.budget_ratio=half: "),
        ({"name": "all"}, "active.strategy=None: must be one of all, random, uncertainty, coverage, meta"),
    ],
)
def test_refused(section, message):
    with pytest.raises(UserError, match=message):
        parse(**section)


def test_every_strategy_has_settings_and_a_policy():
    assert SCHEMAS.keys() == POLICIES.keys()
    assert tuple(MEASURES) == active_config.MEASURES


def test_what_chooses_in_words():
    assert parse(**RANDOM).description == "random"
    assert parse(**UNCERTAIN).description == "uncertainty by student_loss"


def test_a_policy_that_is_started_again_forgets(tiny_dataset):
    policy = build(tiny_dataset, **RANDOM, budget_ratio=0.5)
    first = random_rows(policy)
    policy.start(tiny_dataset, 1)
    assert random_rows(policy) == first
