"""Policies inside a training: what they chose, partial coverage of the teacher, and choosing rows beforehand."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from src.core.errors import UserError
from src.core.metrics import MetricsConfig
from src.distill.data_bridge import TeacherOutputs
from src.distill.row_selection import select_rows
from src.distill.selection_log import LoggedPolicy, read_selection
from src.distill.selection_policy import (
    POLICIES,
    ActiveConfig,
    SelectionPolicy,
    SelectionPolicyAll,
    SelectionPolicyMeta,
)
from src.distill.trainer_distill import DistillConfig, train_distilled
from src.student.config import StudentConfig
from src.student.models import build_model

CPU = torch.device("cpu")
NUM_ITEMS = 30
CONFIGS = {
    "random": ActiveConfig("random", "random", 0.25),
    "batch": ActiveConfig("uncertainty", "uncertainty", 0.25, "student_entropy", "batch"),
    "epoch": ActiveConfig("uncertainty", "uncertainty", 0.25, "disagreement", "epoch"),
    "meta": ActiveConfig("meta", "meta", 0.25, validation_batch_size=16, validation_temperature=3.0),
}


class Recorder:
    def __init__(self) -> None:
        self.scalars: dict[str, list[float]] = {}

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.scalars.setdefault(tag, []).append(scalar_value)

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def walks(make_dataset):
    """60 users; the rule is item + 1, which half of their training steps follow, and all later ones."""
    random = np.random.default_rng(0)

    def walk() -> list[int]:
        items = [int(random.integers(NUM_ITEMS))]
        for place in range(9):
            follows = place >= 7 or random.random() < 0.5
            items.append((items[-1] + 1) % NUM_ITEMS if follows else int(random.integers(NUM_ITEMS)))
        return items

    return make_dataset([walk() for _ in range(60)], NUM_ITEMS, max_seq_len=6)


def teacher_of(dataset, clean: np.ndarray | None = None) -> TeacherOutputs:
    """A teacher that knows the rule; rows that are not `clean` get random items."""
    before = torch.from_numpy(dataset.train.items[dataset.train.pos - 1].astype(np.int64))
    random = torch.Generator().manual_seed(0)
    rule = (before[:, None] + torch.tensor([1, 2])) % NUM_ITEMS
    noise = torch.rand(len(before), NUM_ITEMS, generator=random).topk(2).indices
    ranking = rule if clean is None else torch.where(torch.from_numpy(clean)[:, None], rule, noise)
    distances = torch.tensor([0.0, 1.0]).expand(len(before), 2).contiguous()
    return TeacherOutputs(torch.randn(NUM_ITEMS, 5, generator=random), ranking, distances, None)


@pytest.fixture
def train(walks, logger, tmp_path):
    """Distil; returns the saved weights."""

    def run(policy, outputs, name="model", epochs=3, student=None, **changes):
        sizes = {"emb_size": 16, "hidden_size": 16, "max_seq_len": 6, "batch_size": 64, "lr": 0.01}
        student = StudentConfig(**{"name": "sasrec", **sizes, **(student or {})})
        settings = DistillConfig("dllm2rec", batch_size=64, lr=0.01, num_epochs=epochs, top_k=2, **changes)
        metrics, folder = MetricsConfig([1, 5], "ndcg@5"), tmp_path / name
        train_distilled(
            settings, student, walks, outputs, policy, None, metrics, folder, 1, CPU, logger, Recorder()
        )  # fmt: skip
        return load_file(folder / "model.safetensors")

    return run


def make(name: str, dataset, writer=None) -> LoggedPolicy:
    config = CONFIGS[name]
    return LoggedPolicy(POLICIES[config.strategy](config, dataset, 1), dataset, writer or Recorder())


# --- what was chosen ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batching", ["rows", "packed"])
@pytest.mark.parametrize("name", ["random", "batch", "epoch"])
def test_every_epoch_keeps_the_budget(walks, train, tmp_path, name, batching):
    writer = Recorder()
    policy = make(name, walks, writer)
    train(policy, teacher_of(walks), student={"batching": batching})
    policy.save(tmp_path / "selection.npz")
    epochs, weight = read_selection(tmp_path / "selection.npz")
    count = int(0.25 * len(walks.train) + 0.5)
    assert [len(rows) for rows in epochs] == [count] * 3
    assert weight == pytest.approx(np.bincount(np.concatenate(epochs), minlength=len(walks.train)) / 3)
    assert writer.scalars["selection/share"] == pytest.approx([count / len(walks.train)] * 3)
    shared = [len(np.intersect1d(one, two)) / count for one, two in pairwise(epochs)]
    assert writer.scalars["selection/overlap"] == pytest.approx(shared)
    frequency = np.bincount(walks.train.targets, minlength=NUM_ITEMS)[walks.train.targets]
    assert writer.scalars["selection/popularity"] == pytest.approx([frequency[rows].mean() for rows in epochs])


@pytest.mark.parametrize("batching", ["rows", "packed"])
def test_meta_spends_its_budget_at_most(walks, train, batching):
    writer = Recorder()
    train(make("meta", walks, writer), teacher_of(walks), student={"batching": batching})
    assert all(0.1 < share <= 0.25 + 1e-6 for share in writer.scalars["selection/share"])


@pytest.mark.parametrize(
    ("student", "candidate_loss"),
    [({"name": "gru4rec"}, "paper"), ({"name": "sasrec_plus", "norm": "pre", "tied_output": True}, "softmax")],
)
def test_meta_prefers_clean_rows_over_corrupted_ones(walks, train, student, candidate_loss):
    clean = np.random.default_rng(1).random(len(walks.train)) < 0.6
    policy = LoggedPolicy(SelectionPolicyMeta(walks, 0.5, 60, 3.0, 1), walks, Recorder())
    train(policy, teacher_of(walks, clean), epochs=8, student=student, ed_weight=0.0, candidate_loss=candidate_loss)
    weight = (policy.total / len(policy.epochs)).numpy()
    assert weight[clean].mean() > weight[~clean].mean() + 0.1


class SelectTwice(SelectionPolicy):
    def select(self, batch, teacher_info, student_info):
        return torch.full((len(batch.row),), 2.0)


def test_a_weight_above_one_is_refused(walks, train):
    with pytest.raises(UserError, match=r"SelectTwice.select: a weight of 2.0; all must be from 0 to 1"):
        train(LoggedPolicy(SelectTwice(), walks, Recorder()), teacher_of(walks))


def test_a_restored_log_goes_on_as_if_undisturbed(walks, train, tmp_path):
    whole, first = make("random", walks), make("random", walks)
    train(whole, teacher_of(walks), epochs=3)
    train(first, teacher_of(walks), epochs=1)
    second = make("random", walks)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    train(second, teacher_of(walks), epochs=2)
    found = []
    for policy in (whole, second):  # random choice depends on no weights, so two trainings may stand for one
        policy.save(tmp_path / "selection.npz")
        found.append(read_selection(tmp_path / "selection.npz"))
    assert all(len(epochs) == 3 for epochs, _ in found)
    assert found[0][1].sum() == pytest.approx(found[1][1].sum())


# --- rows without a teacher ---------------------------------------------------------------------------------


class SelectRows(SelectionPolicy):
    def __init__(self, rows: np.ndarray) -> None:
        self.rows = torch.from_numpy(rows)

    def select(self, batch, teacher_info, student_info):
        return torch.isin(batch.row, self.rows)


@pytest.mark.parametrize("changes", [{}, {"embedding": "align"}, {"candidate_loss": "official", "loss": "bce_dros"}])
def test_a_partial_teacher_equals_a_mask_over_a_whole_one(walks, train, changes):
    rows = np.arange(3, len(walks.train), 4)
    whole = teacher_of(walks)
    masked = train(SelectRows(rows), whole, "masked", **changes)
    unasked = torch.full_like(whole.ranking, 0)
    unasked[rows] = whole.ranking[rows]
    partial = replace(whole.restricted_to(rows, len(walks.train)), ranking=unasked)
    asked = train(SelectionPolicyAll(), partial, "asked", **changes)
    everything = train(SelectionPolicyAll(), whole, "everything", **changes)
    assert all(torch.equal(masked[name], asked[name]) for name in masked)
    assert not all(torch.equal(masked[name], everything[name]) for name in masked)


@pytest.mark.parametrize("name", CONFIGS)
def test_no_policy_chooses_a_row_without_a_teacher(walks, train, name):
    rows = np.arange(0, len(walks.train), 2)
    policy = make(name, walks)
    train(policy, teacher_of(walks).restricted_to(rows, len(walks.train)))
    assert (policy.total.numpy()[1::2] == 0).all()
    expected = int(0.25 * len(rows) + 0.5) * 3
    assert policy.total.sum().item() == expected if name != "meta" else 0 < policy.total.sum().item() < expected + 3


def test_restricting_twice_leaves_what_both_allow(walks):
    count = len(walks.train)
    known = teacher_of(walks).restricted_to(np.array([1, 4, 7]), count).restricted_to(np.array([4, 5]), count).known
    assert known.nonzero()[:, 0].tolist() == [4]


# --- before the export --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(walks):
    torch.manual_seed(0)
    return build_model(StudentConfig("sasrec", emb_size=8, hidden_size=8, max_seq_len=6).model_config(NUM_ITEMS))


def scores_of(model, dataset) -> torch.Tensor:
    history, length, _ = map(torch.from_numpy, dataset.train.windows(6, dataset.pad_id))
    with torch.no_grad():
        return model.eval()(history, length)


@pytest.mark.parametrize("per", ["batch", "epoch"])
def test_rows_with_the_highest_entropy_of_all_are_chosen(walks, model, monkeypatch, per):
    monkeypatch.setattr("src.distill.row_selection._BATCH", 50)
    config = ActiveConfig("uncertainty", "uncertainty", 0.1, "student_entropy", per)
    rows = select_rows(config, model, walks, 1, CPU)
    log_p = scores_of(model, walks).log_softmax(1)
    entropy = -(log_p.exp() * log_p).sum(1)
    assert rows.tolist() == sorted(entropy.topk(int(0.1 * len(walks.train) + 0.5)).indices.tolist())


def test_random_rows_follow_the_seed(walks, model):
    one, again, other = (select_rows(CONFIGS["random"], model, walks, seed, CPU).tolist() for seed in (1, 1, 2))
    assert one == again != other
    assert len(one) == int(0.25 * len(walks.train) + 0.5)


@pytest.mark.parametrize("name", ["epoch", "meta"])
def test_what_needs_the_teacher_cannot_choose_before_the_export(walks, model, name):
    with pytest.raises(UserError, match="needs the teacher's ranking, and there is none before the export"):
        select_rows(CONFIGS[name], model, walks, 1, CPU)
