"""Training with a teacher: the total loss, its equivalences with the baseline, what is saved."""

from dataclasses import replace
from math import exp, log
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from src.core.errors import UserError
from src.core.metrics import MetricsConfig
from src.core.settings import flat_settings, parse_section
from src.distill.config import DistillConfig, RankingWeights
from src.distill.data_bridge import TeacherOutputs
from src.distill.fusion import TeacherTable, fuse_teacher
from src.distill.kd_losses import alignment_loss, candidate_weights, positive_losses
from src.distill.selection_policy import SelectionPolicy, SelectionPolicyAll
from src.distill.trainer_distill import Alignment, Distillation, DistillObjective, train_distilled
from src.student import objectives
from src.student.checkpoint import load_checkpoint
from src.student.config import LossSettings, ModelConfig, SASRecConfig
from src.student.context import Resume
from src.student.datamodule import Batch, build_train_loader
from src.student.evaluator import evaluate_model
from src.student.models import ItemEmbedding, Student, build_model
from src.student.objectives import BaseLoss, Dros, propensity
from src.student.trainer_baseline import train_baseline

CPU = torch.device("cpu")
METRICS = MetricsConfig(ks=[1, 5], monitor="ndcg@5")
NUM_ITEMS, LLM_DIM, TOP_N, SEED = 12, 9, 4, 7


class SelectNothing(SelectionPolicy):
    def select(self, batch, teacher_info, student_info):
        return torch.zeros_like(batch.target, dtype=torch.bool)


class SelectEven(SelectionPolicy):
    """Every other training row."""

    def select(self, batch, teacher_info, student_info):
        return batch.row % 2 == 0


WHITENED = {"embedding_transform": "whiten"}


def student(**changes) -> SASRecConfig:
    base = {"emb_size": 8, "hidden_size": 8, "max_seq_len": 5, "batch_size": 8, "lr": 0.01, "num_epochs": 4}
    return SASRecConfig(name="sasrec", **{**base, **changes})


def distill(**changes) -> DistillConfig:
    return DistillConfig(name="dllm2rec", **{"batch_size": 8, "lr": 0.01, "num_epochs": 4, "top_k": TOP_N, **changes})


@pytest.fixture
def outputs(tiny_dataset) -> TeacherOutputs:
    """A teacher that puts the target first, then the three items behind it."""
    target = torch.from_numpy(tiny_dataset.train.targets)
    return TeacherOutputs(
        embeddings=torch.cos(torch.arange(NUM_ITEMS * LLM_DIM) ** 2.0).reshape(NUM_ITEMS, LLM_DIM),
        ranking=(target[:, None] + torch.arange(TOP_N)) % NUM_ITEMS,
        confidence=torch.linspace(0, 1, TOP_N).expand(len(target), TOP_N).contiguous(),
        manifest_sha256="m" * 64,
    )


@pytest.fixture
def run(tiny_dataset, outputs, context, tmp_path):
    """Train with a teacher; returns the result and the folder."""

    def train(name, settings, policy=None, init=None, config=None, teacher=outputs, seed=SEED, resume=None):
        result = train_distilled(
            config or student(),
            tiny_dataset,
            distillation=Distillation(
                settings=settings, outputs=teacher, policy=policy or SelectionPolicyAll(), init_checkpoint=init
            ),
            metrics=METRICS,
            folder=tmp_path / name,
            context=replace(context, seed=seed, resume=resume),
        )
        return result, tmp_path / name

    return train


@pytest.fixture
def baseline(tiny_dataset, context, tmp_path):
    def train(config=None):
        folder = tmp_path / "baseline"
        result = train_baseline(config or student(), tiny_dataset, metrics=METRICS, folder=folder, context=context)
        return result, folder

    return train


def weights(folder) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder)[0].state_dict()


def assert_same_weights(one, two) -> None:
    first, second = weights(one), weights(two)
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


# --- the total loss -----------------------------------------------------------------------------------------


class FixedScores(torch.nn.Module):
    """A model whose scores are given; row r of the batch gets row r of the table."""

    def __init__(self, scores: torch.Tensor, emb_size: int = 3) -> None:
        super().__init__()
        self.scores = torch.nn.Parameter(scores)
        self.item_embeddings = ItemEmbedding(scores.shape[1], emb_size)
        with torch.no_grad():
            self.item_embeddings.weight.copy_(
                torch.sin(1.7 * torch.arange(1, 1 + (scores.shape[1] + 1) * emb_size)).reshape(-1, emb_size)
            )

    def shared_table(self):
        return None

    def encode(self, history, length, table):
        return self.scores

    def score(self, hidden, table):
        return hidden

    def output_layer(self, table):
        return torch.eye(self.scores.shape[1]), torch.zeros(self.scores.shape[1])


SCORES = torch.tensor([[0.5, -1.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0], [1.0, 3.0, -2.0, 0.5]])
BATCH = Batch(torch.tensor([4, 1, 2]), torch.zeros(3, 2), torch.ones(3), torch.tensor([3, 0, 1]))


def small_outputs() -> TeacherOutputs:
    ranking = torch.tensor([[0, 1], [2, 3], [1, 0], [3, 2], [0, 2]])
    confidence = torch.tensor([[0.0, 1.0], [0.0, 0.5], [0.2, 0.4], [0.0, 0.0], [0.0, 0.25]])
    embeddings = torch.cos(2.3 * torch.arange(8.0)).reshape(4, 2)
    return TeacherOutputs(embeddings=embeddings, ranking=ranking, confidence=confidence)


def objective(settings, policy, outputs, alignment=None, base: str = "ce") -> DistillObjective:
    toy = SimpleNamespace(num_items=4, train=SimpleNamespace(targets=[0, 1, 1, 3]))
    base_loss = BaseLoss(LossSettings(base), toy, max_seq_len=1, seed=3, device=CPU)
    return DistillObjective(settings=settings, base_loss=base_loss, policy=policy, outputs=outputs, alignment=alignment)


def small_alignment() -> Alignment:
    projection = torch.nn.Linear(2, 3)
    with torch.no_grad():
        projection.weight.copy_(torch.tensor([[1.0, 0.5], [-0.5, 2.0], [0.25, -1.0]]))
        projection.bias.copy_(torch.tensor([0.1, -0.2, 0.3]))
    return Alignment(TeacherTable(small_outputs().embeddings, "float32", torch.device("cpu")), projection)


def cross_entropy(rows=(0, 1, 2)) -> float:
    terms = [log(sum(exp(s) for s in SCORES[i].tolist())) - SCORES[i, BATCH.target[i]].item() for i in rows]
    return sum(terms) / len(terms)


def per_sample_terms() -> tuple[list[float], list[float]]:
    """Ranking and alignment loss of each sample; the losses themselves are tested in test_kd_losses."""
    outputs, model = small_outputs(), FixedScores(SCORES)
    ranking, confidence = outputs.ranking[BATCH.row], outputs.confidence[BATCH.row]
    mixed = candidate_weights(ranking, confidence, SCORES, RankingWeights(0.3, 0.5, 0.1))
    projected = small_alignment()(BATCH.target)
    aligned = alignment_loss(model.item_embeddings.weight[BATCH.target], projected)
    return (mixed * positive_losses(SCORES.gather(1, ranking))).sum(1).tolist(), aligned.tolist()


@pytest.mark.parametrize(
    "policy, selected", [(SelectionPolicyAll(), (0, 1, 2)), (SelectEven(), (0, 2)), (SelectNothing(), ())]
)
def test_total_loss_of_align(policy, selected):
    settings = distill(alpha=0.5, ed_weight=0.3, kd_weight=0.7, embedding="align", top_k=2)
    ranking, aligned = per_sample_terms()

    loss, parts = objective(settings, policy, small_outputs(), small_alignment())(FixedScores(SCORES), BATCH)

    # The base loss covers every row; the terms are divided by the batch, not by what was selected.
    mean_ranking, mean_aligned = (sum(values[i] for i in selected) / 3 for values in (ranking, aligned))
    expected = cross_entropy() + 0.7 * (0.5 * mean_ranking + 0.3 * mean_aligned)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert {name: value.item() for name, value in parts.items()} == pytest.approx(
        {
            "loss_ce": cross_entropy(),
            "selected": len(selected) / 3,
            "loss_ranking": mean_ranking,
            "loss_alignment": mean_aligned,
        },
        rel=1e-5,
    )
    assert not any(value.requires_grad for value in parts.values())


def test_total_loss_of_fuse_has_no_alignment_term():
    settings = distill(alpha=0.5, ed_weight=0.3, kd_weight=0.7, embedding="fuse", top_k=2)
    ranking, _ = per_sample_terms()

    loss, parts = objective(settings, SelectionPolicyAll(), small_outputs())(FixedScores(SCORES), BATCH)

    assert loss.item() == pytest.approx(cross_entropy() + 0.7 * 0.5 * sum(ranking) / 3, rel=1e-5)
    assert "loss_alignment" not in parts


def test_teacher_rows_join_on_the_row_number():
    seen = []

    class Spy(SelectionPolicy):
        def select(self, batch, teacher_info, student_info):
            seen.append((teacher_info, student_info))
            return torch.ones(3)

    objective(distill(top_k=2), Spy(), small_outputs())(FixedScores(SCORES), BATCH)

    ((teacher, info),) = seen
    assert teacher.ranking.tolist() == [[0, 2], [2, 3], [1, 0]]  # rows 4, 1, 2
    assert teacher.confidence.tolist() == [pytest.approx(row) for row in ([0.0, 0.25], [0.0, 0.5], [0.2, 0.4])]
    assert torch.equal(info.scores, SCORES)
    assert not info.scores.requires_grad
    assert torch.equal(info.target, BATCH.target)


def test_a_policy_is_not_asked_where_there_is_nothing_to_gate():
    class Never(SelectionPolicy):
        def select(self, *args):
            raise AssertionError("asked")

    for settings in (distill(kd_weight=0.0), distill(alpha=0.0)):
        loss, parts = objective(settings, Never(), small_outputs())(FixedScores(SCORES), BATCH)
        assert loss.item() == pytest.approx(cross_entropy())
        assert list(parts) == ["loss_ce"]


# --- sampled softmax ----------------------------------------------------------------------------------------


def listwise_step(dataset, outputs, base, policy, monkeypatch, **changes):
    """Loss, gradient of the item table, and terms of a softmax distillation; sampled negatives are all items once."""
    torch.manual_seed(1)
    model = build_model(student(tied_output=True, scores="cosine", temperature=0.1).model_config(dataset.num_items))
    base_loss = BaseLoss(LossSettings(base), dataset, max_seq_len=5, seed=3, device=CPU)
    monkeypatch.setattr(base_loss, "_draw", lambda device: (torch.arange(dataset.num_items), None))
    settings = distill(candidate_loss="softmax", ed_weight=0.0, **changes)
    rows = torch.tensor([3, 0, 17])
    history, length, target = map(torch.from_numpy, dataset.train.windows(5, dataset.pad_id, rows.numpy()))
    step = DistillObjective(settings=settings, base_loss=base_loss, policy=policy, outputs=outputs)
    loss, terms = step(model.eval(), Batch(rows, history, length, target))
    loss.backward()
    return loss.item(), model.item_embeddings.weight.grad, terms["loss_ranking"].item()


@pytest.mark.parametrize("consistency", [0.0, 0.1])
def test_sampled_softmax_distils_by_its_own_estimate(tiny_dataset, outputs, monkeypatch, consistency):
    def step(base):
        policy = SelectionPolicyAll()
        return listwise_step(tiny_dataset, outputs, base, policy, monkeypatch, gamma_consistency=consistency)

    loss, gradient, ranking = step("sampled_softmax")
    expected_loss, expected_gradient, expected_ranking = step("ce")

    assert (loss, ranking) == (pytest.approx(expected_loss, rel=1e-5), pytest.approx(expected_ranking, rel=1e-5))
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)
    assert gradient.abs().max() > 0.01


def test_no_item_is_scored_that_nobody_asks_for(tiny_dataset, outputs, monkeypatch):
    def refuse(*args):
        raise AssertionError("all items were scored")

    monkeypatch.setattr(Student, "score", refuse)
    listwise_step(tiny_dataset, outputs, "sampled_softmax", SelectionPolicyAll(), monkeypatch, gamma_consistency=0.0)


def test_a_policy_sees_the_same_student_under_sampled_softmax(tiny_dataset, outputs, monkeypatch):
    seen = []

    class Spy(SelectionPolicy):
        def select(self, batch, teacher_info, student_info):
            seen.append((student_info.scores, student_info.score_gradient()))
            return torch.ones(3)

    for base in ("sampled_softmax", "ce"):
        listwise_step(tiny_dataset, outputs, base, Spy(), monkeypatch)

    for sampled, exact in zip(*seen, strict=True):
        assert exact.abs().max() > 0.01
        torch.testing.assert_close(sampled, exact, rtol=1e-4, atol=1e-6)


class Masked(SelectionPolicy):
    """The weights that it was given."""

    def select(self, batch, teacher_info, student_info):
        return self.settings


OFFICIAL = {"loss": "bce_dros", "candidate_loss": "official", "ed_weight": 0.0, "top_k": 2}


@pytest.mark.parametrize("average", ["batch", "row"])
@pytest.mark.parametrize("mask", [[1.0, 0.0, 1.0], [0.25, 1.0, 0.5], [0.0, 0.0, 0.0]], ids=str)
def test_a_mask_and_the_rest_make_the_official_loss_of_everything(average, mask):
    """KD(m) + KD(1 - m) = KD(all), whether or not the rows share their DROS."""
    settings = distill(**OFFICIAL, dros_average=average)

    def ranking(weights) -> float:
        step = objective(settings, Masked(weights), small_outputs(), base="bce_dros")
        return step(FixedScores(SCORES), BATCH)[1]["loss_ranking"].item()

    mask = torch.tensor(mask)
    assert ranking(mask) + ranking(1 - mask) == pytest.approx(ranking(torch.ones(3)), rel=1e-12)


def test_the_official_loss_averages_dros_over_the_rows_with_a_teacher():
    """Row 1 has none: the DROS of candidate k is the mean of the rows 0 and 2, weighted by each one's own weights."""
    outputs = small_outputs().restricted_to(np.array([4, 2]), 5)
    scores = SCORES.double()
    dros = Dros(scores, propensity([0, 1, 1, 3], 4), 1.0)
    ranking = outputs.ranking[BATCH.row]
    robust = dros.term(ranking, scores.gather(1, ranking))
    weights = candidate_weights(ranking, outputs.confidence[BATCH.row], SCORES, RankingWeights(0.3, 0.5, 0.1))
    of_batch = sum(weights[i, k] * (robust[0, k] + robust[2, k]) / 2 for i in (0, 2) for k in (0, 1)) / 3
    of_rows = sum(weights[i, k] * robust[i, k] for i in (0, 2) for k in (0, 1)) / 3

    def ranking_loss(average: str, alpha: float) -> float:
        settings = distill(**OFFICIAL, dros_average=average, alpha=alpha)
        step = objective(settings, SelectionPolicyAll(), outputs, base="bce_dros")
        return step(FixedScores(SCORES), BATCH)[1]["loss_ranking"].item()

    without = ranking_loss("batch", 0.0)
    assert ranking_loss("batch", 0.5) - without == pytest.approx(0.5 * of_batch.item(), rel=1e-5)
    assert ranking_loss("row", 0.5) - without == pytest.approx(0.5 * of_rows.item(), rel=1e-5)


# --- equivalences -------------------------------------------------------------------------------------------


def test_no_weights_is_the_baseline_step_for_step(baseline, run):
    nothing = TeacherOutputs()
    expected, plain = baseline()
    result, folder = run("distill", distill(kd_weight=0.0, ed_weight=0.0), teacher=nothing)

    assert result.history == expected.history
    assert (result.best_epoch, result.best_value) == (expected.best_epoch, expected.best_value)
    assert_same_weights(folder, plain)


def test_no_weights_is_the_baseline_with_other_options_too(baseline, run):
    config = student(weight_decay=1e-3, grad_clip=0.1, emb_size=6, patience=2)
    expected, plain = baseline(config)
    settings = distill(kd_weight=0.0, ed_weight=0.0, embedding="align")
    result, folder = run("distill", settings, config=config)

    assert result.history == expected.history
    assert_same_weights(folder, plain)


@pytest.mark.parametrize("alpha", [0.5, 0.0])
def test_selecting_nothing_under_align_is_the_baseline(baseline, run, alpha):
    expected, plain = baseline()
    result, folder = run("distill", distill(embedding="align", alpha=alpha), SelectNothing())

    # With a ranking the scores of a batch are held, without one they are taken in chunks: the sums round differently.
    for record, wanted in zip(result.history, expected.history, strict=True):
        assert {name: record[name] for name in wanted} == pytest.approx(wanted, rel=1e-5)
        assert record["selected"] == 0.0
    if alpha == 0:
        assert_same_weights(folder, plain)


def test_the_alignment_alone_needs_no_ranking(run, outputs):
    embeddings_only = TeacherOutputs(embeddings=outputs.embeddings)
    result, _ = run("distill", distill(embedding="align", alpha=0.0), teacher=embeddings_only)
    assert set(result.history[0]) >= {"loss_alignment", "selected"}
    assert "loss_ranking" not in result.history[0]


def test_each_part_of_the_distillation_changes_the_run(run):
    settings = {
        "off": distill(kd_weight=0.0, ed_weight=0.0),
        "ranking": distill(ed_weight=0.0),
        "fuse": distill(kd_weight=0.0),
        "align": distill(alpha=0.0, embedding="align"),
        "whitened": distill(kd_weight=0.0, **WHITENED, embedding_dims=3),
        "residual": distill(kd_weight=0.0, **WHITENED, embedding="residual"),
        "init": distill(kd_weight=0.0, **WHITENED, embedding="init"),
        "both": distill(),
        "position": distill(ed_weight=0.0, gamma_position=5.0),
        "confidence": distill(ed_weight=0.0, gamma_confidence=5.0),
        "temperature": distill(ed_weight=0.0, confidence_temperature=0.1),
        "consistency": distill(ed_weight=0.0, gamma_consistency=5.0),
    }

    losses = {name: [record["loss_ce"] for record in run(name, each)[0].history] for name, each in settings.items()}

    for name, values in losses.items():
        assert [other for other in losses if losses[other] == values] == [name]


def test_equal_seeds_distil_equally(run):
    first, one = run("one", distill())
    torch.rand(3)
    again, two = run("two", distill())
    other, _ = run("three", distill(), seed=SEED + 1)

    assert first.history == again.history
    assert first.history != other.history
    assert_same_weights(one, two)


def test_a_teacher_that_knows_the_target_teaches_it(run, tiny_dataset):
    """The ranking loss falls on what it is trained on."""
    result, _ = run("distill", distill(num_epochs=20, ed_weight=0.0))
    assert result.history[-1]["loss_ranking"] < result.history[0]["loss_ranking"]


# --- what is saved and where it starts ----------------------------------------------------------------------


@pytest.mark.parametrize("embedding", ["fuse", "align", "residual", "init"])
def test_a_distilled_checkpoint_is_a_baseline_checkpoint(baseline, run, tiny_dataset, embedding):
    _, plain = baseline()
    result, folder = run("distill", distill(embedding=embedding, **WHITENED))
    model, info = load_checkpoint(folder)  # no teacher file anywhere

    shapes = {name: value.shape for name, value in weights(plain).items()}
    assert {name: value.shape for name, value in model.state_dict().items()} == shapes
    metrics = evaluate_model(model, tiny_dataset.valid, tiny_dataset, METRICS.ks, CPU).metrics
    record = result.history[result.best_epoch - 1]
    assert metrics == pytest.approx({name: record[f"valid/{name}"] for name in metrics})
    assert (info.epoch, info.valid_value) == (result.best_epoch, result.best_value)
    assert info.teacher_manifest_sha256 == "m" * 64


@pytest.mark.parametrize("embedding", ["fuse", "align"])
def test_starting_from_a_baseline_starts_with_its_scores(baseline, run, tiny_dataset, embedding):
    result, plain = baseline()
    # One epoch at a vanishing rate: what is saved is step 0.
    _, folder = run("distill", distill(num_epochs=1, lr=1e-12, embedding=embedding), init=plain)

    first, second = weights(plain), weights(folder)
    for name in first:
        torch.testing.assert_close(second[name], first[name], atol=1e-8, rtol=0)
    start = evaluate_model(load_checkpoint(folder)[0], tiny_dataset.valid, tiny_dataset, METRICS.ks, CPU)
    assert start.metrics["ndcg@5"] == pytest.approx(result.best_value)


def test_starting_from_a_baseline_still_learns_the_projection(baseline, run):
    _, plain = baseline()
    _, folder = run("distill", distill(num_epochs=1), init=plain)
    moved = weights(folder)["item_embeddings.weight"] - weights(plain)["item_embeddings.weight"]
    assert moved.abs().max() > 1e-4


def test_start_from_a_checkpoint_of_another_dataset(baseline, make_dataset, outputs, context, tmp_path):
    _, plain = baseline()
    other = make_dataset([[0, 1, 2, 3, 4]], num_items=NUM_ITEMS, name="other")
    with pytest.raises(UserError, match=r"distill\.init_checkpoint=.*: trained on tiny \(.*\), this run uses other"):
        train_distilled(
            student(),
            other,
            distillation=Distillation(settings=distill(), outputs=outputs, init_checkpoint=plain),
            metrics=METRICS,
            folder=tmp_path,
            context=context,
        )


def test_start_from_a_checkpoint_of_another_shape(baseline, run):
    _, plain = baseline()
    with pytest.raises(UserError, match="this model wants"):
        run("distill", distill(), init=plain, config=student(hidden_size=16))


# --- settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"name": "other"}, "distill.name='other': must be one of dllm2rec"),
        ({"alpha": -1.0}, "distill.alpha=-1.0: must be a number >= 0"),
        ({"ed_weight": -1.0}, "distill.ed_weight=-1.0"),
        ({"kd_weight": -0.5}, "distill.lambda=-0.5: must be a number >= 0"),
        ({"batch_size": 0}, "distill.batch_size=0: must be an integer >= 1"),
        ({"num_epochs": 0}, "distill.num_epochs=0"),
        ({"top_k": 0}, "distill.top_k=0"),
        ({"lr": 0.0}, "distill.lr=0.0: must be a number > 0"),
        ({"gamma_consistency": -1.0}, "distill.gamma_consistency=-1.0"),
        (
            {"gamma_position": 0.0, "gamma_confidence": 0.0, "gamma_consistency": 0.0},
            "distill.gamma_position=0.0: must be above 0",
        ),
        ({"embedding": "add"}, "distill.embedding='add': must be one of fuse, align"),
        ({"init": "teacher"}, "distill.init='teacher': must be one of scratch, baseline"),
        ({"teacher": "oracle"}, "distill.teacher='oracle': must be one of files, recommender, random"),
        ({"dros_average": "column"}, "distill.dros_average='column': must be one of batch, row"),
        ({"dros_average": "row"}, "distill.dros_average='row': must be batch with distill.candidate_loss=paper"),
        ({"confidence_temperature": 0.0}, "distill.confidence_temperature=0.0: must be a number > 0"),
        ({"embedding_transform": "pca"}, "distill.embedding_transform='pca': must be one of none, whiten"),
        ({"embedding_dims": 8}, "distill.embedding_dims=8: must be null with distill.embedding_transform=none"),
        (
            {**WHITENED, "embedding_dims": 0},
            r"distill.embedding_dims=0: must be null \(student.emb_size\) or an integer",
        ),
        (
            {"init": "baseline", "embedding": "init"},
            "distill.init='baseline': must be scratch with distill.embedding=init",
        ),
        (
            {"teacher_table": "cpu", "embedding": "init"},
            "distill.teacher_table='cpu': must be float32 with distill.emb",
        ),
        ({"init_checkpoint": "x"}, "distill.init_checkpoint='x': must be null with distill.init=scratch"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(UserError, match=message):
        DistillConfig(**{"name": "dllm2rec", **changes})


@pytest.mark.parametrize(
    "changes, ranking, embeddings",
    [
        ({}, True, True),
        ({"alpha": 0.0}, False, True),
        ({"kd_weight": 0.0}, False, True),
        ({"kd_weight": 0.0, "embedding": "align"}, False, False),
        ({"embedding": "align"}, True, True),
        ({"ed_weight": 0.0}, True, False),
        ({"kd_weight": 0.0, "embedding": "residual"}, False, True),
        ({"kd_weight": 0.0, "embedding": "init"}, False, True),
    ],
)
def test_what_is_needed(changes, ranking, embeddings):
    settings = distill(**changes)
    assert (settings.needs_ranking, settings.needs_embeddings) == (ranking, embeddings)


def test_text_that_becomes_the_item_table_has_its_width(run):
    with pytest.raises(UserError, match="distill.embedding_dims=3: must be null or student.emb_size=8"):
        distill(**WHITENED, embedding="residual", embedding_dims=3).as_student(student())
    with pytest.raises(UserError, match="the teacher's embeddings have .* columns, the item table student.emb_size=8"):
        run("distill", distill(embedding="init"))


def test_the_budget_is_its_own_and_the_rest_the_students():
    given = student(weight_decay=0.25, grad_clip=2.0, patience=6, loss="bce")

    assert distill(batch_size=3, lr=0.5, num_epochs=9).as_student(given) == replace(
        given, batch_size=3, lr=0.5, num_epochs=9
    )
    assert distill(loss="ce").as_student(given).loss == "ce"


def test_alpha_weighs_the_base_loss_too_where_it_is_upstreams():
    official = {"candidate_loss": "official", "alpha": 0.25}

    assert distill(**official, loss="bce_dros").as_student(student()).dros_weight == 0.25
    assert distill(**official, loss="bce").as_student(student()) == student(loss="bce")  # has no DROS to weigh
    assert distill(alpha=0.25, loss="bce_dros").as_student(student()).dros_weight == 1.0
    with pytest.raises(UserError, match="needs a base loss with negatives, distill.loss=bce or bce_dros, not ce"):
        distill(**official).as_student(student(loss="ce"))


def test_lambda_is_the_key_and_kd_weight_the_name():
    assert parse_section(DistillConfig, {"name": "dllm2rec", "lambda": 0.25}, "distill").kd_weight == 0.25
    assert flat_settings(distill(kd_weight=0.25), "distill")["distill.lambda"] == 0.25
    with pytest.raises(UserError, match=r"distill.kd_weight: unknown key; did you mean distill.lambda"):
        parse_section(DistillConfig, {"name": "dllm2rec", "kd_weight": 0.25}, "distill")
    with pytest.raises(UserError, match=r"^distill.lambda=much: "):
        parse_section(DistillConfig, {"name": "dllm2rec", "lambda": "much"}, "distill")


# --- packed windows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sasrec", "gru4rec"])
@pytest.mark.parametrize("changes", [{}, {"loss": "bce_dros", "candidate_loss": "official"}, {"embedding": "align"}])
def test_a_packed_batch_has_the_distillation_of_its_rows(
    fill_with_ramp, tiny_dataset, outputs, monkeypatch, name, changes
):
    """All rows in one batch, one window per user against one per row: every loss and gradient, the same negatives."""
    settings = DistillConfig(name="dllm2rec", top_k=outputs.ranking.shape[1], **changes)
    by_row = {}

    def drawn(batch, num_items, random):
        return torch.tensor([by_row.setdefault(row, (7 * row) % 12) for row in batch.row.tolist()])

    monkeypatch.setattr(objectives, "sample_negatives", drawn)

    def losses_and_gradients(batching: str):
        model = fill_with_ramp(build_model(ModelConfig(name, 12, 4, 4, 6, 0.0)))
        table = TeacherTable(outputs.embeddings, "float32", CPU)
        projection = fill_with_ramp(torch.nn.Linear(table.width, 4))
        alignment = None
        if settings.embedding == "fuse":
            fuse_teacher(model, table, projection, settings.ed_weight)
        else:
            alignment = model.alignment = Alignment(table, projection)
        loss_settings = settings.as_student(student()).loss_settings()
        base = BaseLoss(loss_settings, tiny_dataset, max_seq_len=6, seed=1, device=CPU)
        objective = DistillObjective(
            settings=settings, base_loss=base, policy=SelectionPolicyAll(), outputs=outputs, alignment=alignment
        )
        random = torch.Generator().manual_seed(1)
        (batch,) = build_train_loader(
            tiny_dataset, batching=batching, max_len=6, batch_size=32, device=CPU, generator=random
        )
        loss, parts = objective(model, batch)
        loss.backward()
        gradients = {parameter: value.grad for parameter, value in model.named_parameters()}
        return len(batch.windows), {**parts, "loss": loss.detach()}, gradients

    (row_windows, row_losses, row_gradients), (packed_windows, losses, gradients) = map(
        losses_and_gradients, ("rows", "packed")
    )

    assert (row_windows, packed_windows) == (32, 8)
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(
        {k: v.item() for k, v in row_losses.items()}, rel=1e-5
    )
    for parameter, gradient in row_gradients.items():
        torch.testing.assert_close(gradients[parameter], gradient, rtol=1e-3, atol=1e-6, msg=parameter)


# --- an interrupted training --------------------------------------------------------------------------------


class Counting(SelectionPolicyAll):
    """Selects every third row that it sees, however the batches fall: it has to remember."""

    def start(self, dataset, seed) -> None:
        self.seen = 0

    def select(self, batch, teacher_info, student_info):
        place = self.seen + torch.arange(len(batch.target))
        self.seen += len(batch.target)
        return place % 3 == 0

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


@pytest.mark.parametrize("batching", ["rows", "packed"])
@pytest.mark.parametrize(
    "changes", [{}, {"embedding": "align"}, {"loss": "bce_dros", "candidate_loss": "official"}], ids=str
)
def test_a_distillation_that_was_cut_off_ends_as_one_that_was_not(run, tmp_path, monkeypatch, batching, changes):
    def train(name):
        resume = Resume(tmp_path / f"{name}.pt")
        return run(name, distill(**changes), Counting(), config=student(batching=batching), resume=resume)

    whole, folder = train("whole")
    adam = torch.optim.Adam
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        steps, step = iter(range(9)), adam.step  # of 4 an epoch: in the middle of the third
        patch.setattr(adam, "step", lambda self: step(self) if next(steps, None) is not None else _cut_off())
        train("cut")
    result, again = train("cut")

    assert len(result.history) == 4 and result == whole
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def _cut_off():
    raise KeyboardInterrupt
