"""Policies inside a training: what they chose, partial coverage of the teacher, and choosing rows beforehand."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from src.core.errors import UserError
from src.core.metrics import MetricsConfig
from src.distill.active_config import SCHEMAS, ActiveConfig
from src.distill.config import DistillConfig
from src.distill.data_bridge import TeacherOutputs
from src.distill.row_selection import select_rows
from src.distill.selection_log import LoggedPolicy, read_selection
from src.distill.selection_policy import SelectionPolicy, SelectionPolicyAll, TeacherInfo, build_selection_policy
from src.distill.trainer_distill import Distillation, train_distilled
from src.student.config import SCHEMAS as STUDENTS
from src.student.config import SASRecConfig
from src.student.context import RunContext
from src.student.datamodule import Batch
from src.student.models import build_model

CPU = torch.device("cpu")
NUM_ITEMS = 30


def active(strategy: str, ratio: float = 0.25, **values) -> ActiveConfig:
    return SCHEMAS[strategy](name=strategy, strategy=strategy, budget_ratio=ratio, **values)


CONFIGS = {
    "random": active("random"),
    "batch": active("uncertainty", measure="student_entropy", budget_per="batch"),
    "epoch": active("uncertainty", measure="disagreement", budget_per="epoch"),
    "coverage": active("coverage"),
    "meta": active("meta", validation_batch_size=16, validation_temperature=3.0),
}


class Recorder:
    def __init__(self) -> None:
        self.scalars: dict[str, list[float]] = {}

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.scalars.setdefault(tag, []).append(scalar_value)

    def flush(self) -> None: ...

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
    embeddings = torch.randn(NUM_ITEMS, 5, generator=random)
    return TeacherOutputs(embeddings=embeddings, ranking=ranking, confidence=distances)


@pytest.fixture
def train(walks, logger, tmp_path):
    """Distil; returns the saved weights."""

    def run(policy, outputs, name="model", epochs=3, student=None, **changes):
        sizes = {"emb_size": 16, "hidden_size": 16, "max_seq_len": 6, "batch_size": 64, "lr": 0.01}
        values = {"name": "sasrec", **sizes, **(student or {})}
        settings = DistillConfig(name="dllm2rec", batch_size=64, lr=0.01, num_epochs=epochs, top_k=2, **changes)
        folder = tmp_path / name
        train_distilled(
            STUDENTS[values["name"]](**values),
            walks,
            distillation=Distillation(settings=settings, outputs=outputs, policy=policy),
            metrics=MetricsConfig(ks=[1, 5], monitor="ndcg@5"),
            folder=folder,
            context=RunContext(seed=1, device=CPU, logger=logger, writer=Recorder()),
        )
        return load_file(folder / "model.safetensors")

    return run


def make(name: str, writer=None) -> LoggedPolicy:
    return LoggedPolicy(build_selection_policy(CONFIGS[name]), writer or Recorder())


# --- what was chosen ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batching", ["rows", "packed"])
@pytest.mark.parametrize("name", ["random", "batch", "epoch", "coverage"])
def test_every_epoch_keeps_the_budget(walks, train, tmp_path, name, batching):
    writer = Recorder()
    policy = make(name, writer)
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
    train(make("meta", writer), teacher_of(walks), student={"batching": batching})
    assert all(0.1 < share <= 0.25 + 1e-6 for share in writer.scalars["selection/share"])


@pytest.mark.parametrize(
    ("student", "candidate_loss"),
    [({"name": "gru4rec"}, "paper"), ({"name": "sasrec_plus", "norm": "pre", "tied_output": True}, "softmax")],
)
def test_meta_prefers_clean_rows_over_corrupted_ones(walks, train, student, candidate_loss):
    clean = np.random.default_rng(1).random(len(walks.train)) < 0.6
    policy = LoggedPolicy(
        build_selection_policy(active("meta", 0.5, validation_batch_size=60, validation_temperature=3.0)), Recorder()
    )
    train(policy, teacher_of(walks, clean), epochs=8, student=student, ed_weight=0.0, candidate_loss=candidate_loss)
    weight = (policy.total / len(policy.epochs)).numpy()
    assert weight[clean].mean() > weight[~clean].mean() + 0.1


class SelectTwice(SelectionPolicy):
    def select(self, batch, teacher_info, student_info):
        return torch.full((len(batch.row),), 2.0)


def test_a_weight_above_one_is_refused(walks, train):
    with pytest.raises(UserError, match=r"SelectTwice.select: a weight of 2.0; all must be from 0 to 1"):
        train(LoggedPolicy(SelectTwice(), Recorder()), teacher_of(walks))


def test_a_restored_log_goes_on_as_if_undisturbed(walks, tmp_path):
    """Cut in the middle of the second of three epochs; what random chooses depends on no weights."""

    def batches(policy, first, last):
        """Batches of 50 rows, counted over the epochs."""
        per_epoch = -(-len(walks.train) // 50)
        for number in range(first, last):
            begin = number % per_epoch * 50
            row = torch.arange(begin, min(begin + 50, len(walks.train)))
            empty = row.new_zeros(len(row), 0)
            teacher = TeacherInfo(empty, empty.float(), torch.ones(len(row), dtype=torch.bool))
            policy.select(Batch(row, row[:, None], row, row), teacher, None)
        return 3 * per_epoch

    whole, cut, again = (make("random") for _ in range(3))
    for policy in (whole, cut, again):
        policy.start(walks, 1)
    last = batches(whole, 0, 0)
    batches(whole, 0, last)
    batches(cut, 0, last // 2)
    torch.save(cut.state_dict(), tmp_path / "state.pt")
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    batches(again, last // 2, last)

    found = []
    for policy in (whole, again):
        policy.save(tmp_path / "selection.npz")
        found.append(read_selection(tmp_path / "selection.npz"))
    assert len(found[0][0]) == 3
    assert [rows.tolist() for rows in found[0][0]] == [rows.tolist() for rows in found[1][0]]
    assert found[0][1].tolist() == found[1][1].tolist()


# --- rows without a teacher ---------------------------------------------------------------------------------


class SelectRows(SelectionPolicy):
    def __init__(self, rows: np.ndarray) -> None:
        self.rows = torch.from_numpy(rows)

    def select(self, batch, teacher_info, student_info):
        return torch.isin(batch.row, self.rows)


OFFICIAL = {"candidate_loss": "official", "loss": "bce_dros"}
VARIANTS = [{}, {"embedding": "align"}, {**OFFICIAL, "dros_average": "row"}]


@pytest.mark.parametrize("changes", VARIANTS)
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


@pytest.mark.parametrize("changes", [*VARIANTS, OFFICIAL], ids=str)
def test_all_rows_are_all_rows_whoever_chooses_them(walks, train, changes):
    """A share of 100 %, and an export of all rows one by one, train exactly what `all` trains on a whole export."""
    whole = teacher_of(walks)
    everything = train(SelectionPolicyAll(), whole, "everything", **changes)
    drawn = train(build_selection_policy(active("random", 1.0)), whole, "drawn", **changes)
    listed = whole.restricted_to(np.arange(len(walks.train)), len(walks.train))
    asked = train(SelectionPolicyAll(), listed, "asked", **changes)
    for name, value in everything.items():
        assert torch.equal(drawn[name], value) and torch.equal(asked[name], value)


@pytest.mark.parametrize("name", CONFIGS)
def test_no_policy_chooses_a_row_without_a_teacher(walks, train, name):
    rows = np.arange(0, len(walks.train), 2)
    policy = make(name)
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
    return build_model(SASRecConfig(name="sasrec", emb_size=8, hidden_size=8, max_seq_len=6).model_config(NUM_ITEMS))


def scores_of(model, dataset) -> torch.Tensor:
    history, length, _ = map(torch.from_numpy, dataset.train.windows(6, dataset.pad_id))
    with torch.no_grad():
        return model.eval()(history, length)


@pytest.mark.parametrize("per", ["batch", "epoch"])
def test_rows_with_the_highest_entropy_of_all_are_chosen(walks, model, monkeypatch, per):
    monkeypatch.setattr("src.distill.row_selection._BATCH", 50)
    config = active("uncertainty", 0.1, measure="student_entropy", budget_per=per)
    rows = select_rows(config, model, walks, seed=1, device=CPU)
    log_p = scores_of(model, walks).log_softmax(1)
    entropy = -(log_p.exp() * log_p).sum(1)
    assert rows.tolist() == sorted(entropy.topk(int(0.1 * len(walks.train) + 0.5)).indices.tolist())


@pytest.mark.parametrize("name", ["random", "coverage"])
def test_drawn_rows_follow_the_seed(walks, model, name):
    one, again, other = (select_rows(CONFIGS[name], model, walks, seed=seed, device=CPU).tolist() for seed in (1, 1, 2))
    assert one == again != other
    assert len(one) == int(0.25 * len(walks.train) + 0.5)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.25])
def test_coverage_takes_a_row_of_each_last_item_before_another_of_any(walks, model, share):
    last = walks.train.items[walks.train.pos - 1]
    rows = select_rows(active("coverage", share), model, walks, seed=1, device=CPU)
    assert len(rows) == int(share * len(last) + 0.5)
    taken, there = (np.bincount(items, minlength=NUM_ITEMS) for items in (last[rows], last))
    exhausted = taken == there
    assert (taken[~exhausted].max() - taken[~exhausted].min()) <= 1 and (taken[exhausted] <= taken.max()).all()


def test_coverage_keeps_its_rows(walks, train, tmp_path):
    policy = make("coverage")
    train(policy, teacher_of(walks))
    policy.save(tmp_path / "selection.npz")
    first, *later = read_selection(tmp_path / "selection.npz")[0]
    assert later[0].tolist() == later[1].tolist()
    assert len(np.intersect1d(first, later[0])) >= 0.8 * len(first)  # the first epoch goes by batch


@pytest.mark.parametrize("name", ["epoch", "meta"])
def test_what_needs_the_teacher_cannot_choose_before_the_export(walks, model, name):
    with pytest.raises(UserError, match="needs the teacher's ranking, and there is none before the export"):
        select_rows(CONFIGS[name], model, walks, seed=1, device=CPU)
