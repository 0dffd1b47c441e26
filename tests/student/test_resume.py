"""A training that was cut off and started again ends as one that was not: history, weights, random streams."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from src.core.errors import UserError
from src.core.metrics import MetricsConfig
from src.core.paths import RunFolder
from src.core.seed import random_state, restore_random_state, set_seed
from src.core.tracking.base import TrackedRun, tracking
from src.core.tracking.tensorboard_events import TensorBoardConfig
from src.student.config import SCHEMAS
from src.student.context import GeneratorState, Resume
from src.student.trainer_baseline import train_baseline

METRICS = MetricsConfig(ks=[1, 5], monitor="ndcg@5")


class CutOff(Exception):
    """Stands for a kill: nothing between it and the test catches it."""


@pytest.fixture
def cut_off(monkeypatch):
    """`cut_off(n)`: the n-th optimizer step from now on raises, once; `cut_off(None)`: none does."""
    step = torch.optim.Adam.step

    def arm(number: int | None) -> None:
        count = iter(range(1, number or 1))

        def counted(self, *args, **options):
            if number is not None and next(count, None) is None:
                raise CutOff
            return step(self, *args, **options)

        monkeypatch.setattr(torch.optim.Adam, "step", counted)

    return arm


@pytest.fixture
def train(tiny_dataset, context, tmp_path):
    """A baseline of 4 steps an epoch; `name` is its folder and, with `.pt`, its last state."""

    def run(name: str, on_save=lambda: None, /, **changes):
        base = {"emb_size": 8, "hidden_size": 8, "max_seq_len": 5, "batch_size": 8, "lr": 0.01, "num_epochs": 5}
        values = {"name": "sasrec", **base, **changes}
        config, folder = SCHEMAS[values["name"]](**values), tmp_path / name
        resuming = replace(context, resume=Resume(tmp_path / f"{name}.pt", on_save))
        result = train_baseline(config, tiny_dataset, metrics=METRICS, folder=folder, context=resuming)
        return result, (folder / "model.safetensors").read_bytes()

    return run


VARIANTS = [
    {},
    {"batching": "packed"},
    {"loss": "bce"},  # negatives from a generator of their own
    {"save_interval": 3},
    {"num_epochs": 40, "patience": 2, "lr": 0.3},  # stops early
    {"name": "gru4rec", "dropout": 0.3, "batching": "packed", "loss": "sampled_softmax"},
    {"name": "caser", "grad_clip": 0.1, "weight_decay": 0.01, "lr_schedule": "linear"},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_two_cuts_in_the_middle_of_an_epoch_change_nothing(train, cut_off, caplog, changes) -> None:
    whole, weights = train("whole", **changes)
    for _ in range(2):
        cut_off(7)
        with pytest.raises(CutOff):
            train("cut", **changes)
    cut_off(None)
    with caplog.at_level("INFO"):
        result, again = train("cut", **changes)
    assert "going on after epoch" in caplog.text
    assert result == whole and again == weights
    assert "patience" not in changes or len(result.history) < changes["num_epochs"]


def test_a_cut_before_the_first_save_starts_from_the_beginning(train, cut_off, caplog) -> None:
    cut_off(2)
    with pytest.raises(CutOff):
        train("cut")
    cut_off(None)
    with caplog.at_level("INFO"):
        assert train("cut") == train("whole")
    assert "going on" not in caplog.text


def test_a_finished_training_is_only_read(train, cut_off) -> None:
    """Killed between training and evaluation: not one more step."""
    whole = train("whole")
    cut_off(1)
    assert train("whole") == whole


def test_the_state_is_saved_by_interval_at_the_end_and_with_what_save_best_replaced(train) -> None:
    still = {"lr": 1e-30, "num_epochs": 5, "dropout": 0.0}  # no epoch is better than the first
    for interval, expected in ((1, 5), (2, 4), (5, 2), (9, 2)):
        saves = []
        train(f"every {interval}", lambda saves=saves: saves.append(1), save_interval=interval, **still)
        assert len(saves) == expected


@pytest.mark.parametrize("cut_at, epochs_done", [(3, 0), (7, 1), (13, 3)])
def test_steps_done_are_those_of_the_last_save(train, cut_off, tmp_path, cut_at, epochs_done) -> None:
    cut_off(cut_at)
    with pytest.raises(CutOff):
        train("cut")
    assert Resume(tmp_path / "cut.pt").steps_done() == epochs_done


def test_a_training_cut_between_points_and_save_has_every_point_once(
    tiny_dataset, context, tmp_path, monkeypatch
) -> None:
    """The second epoch's points are written, its state is not; then the training goes on."""
    student = SCHEMAS["sasrec"](name="sasrec", emb_size=8, hidden_size=8, max_seq_len=5, batch_size=8, num_epochs=4)
    resume, tb = Resume(tmp_path / "last_state.pt"), tmp_path / "tb" / "baseline"

    def train() -> None:
        run = TrackedRun(folder=RunFolder(tmp_path), name="baseline", keep_until=resume.steps_done())
        with tracking(TensorBoardConfig(), run) as tracker:
            resuming = replace(context, writer=tracker, resume=resume)
            train_baseline(student, tiny_dataset, metrics=METRICS, folder=tmp_path / "model", context=resuming)

    with monkeypatch.context() as patch, pytest.raises(CutOff):
        save = Resume.save

        def save_once(self, progress, components):
            if progress["step"] == 2:
                raise CutOff
            save(self, progress, components)

        patch.setattr(Resume, "save", save_once)
        train()
    train()

    found = [
        (value.tag, event.step)
        for file in tb.iterdir()
        for event in LegacyEventFileLoader(str(file)).Load()
        for value in event.summary.value
    ]
    assert len(found) == len(set(found))
    assert {step for tag, step in found if tag == "loss"} == {1, 2, 3, 4}


def test_a_damaged_state_is_named(train, tmp_path) -> None:
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(UserError, match=r"cut\.pt: cannot go on from this state \(.+\); delete it to train"):
        train("cut")


def test_a_state_of_another_model_is_refused(train) -> None:
    train("cut", emb_size=8)
    with pytest.raises(UserError, match=r"cannot go on from this state \(Error\(s\) in loading state_dict"):
        train("cut", emb_size=4)


def test_every_random_stream_goes_on_where_it_was() -> None:
    def draw() -> list[float]:
        return [random.random(), np.random.rand(), torch.rand(()).item()]

    set_seed(3)
    draw()
    state = random_state()
    after = draw()
    set_seed(4)
    restore_random_state(state)
    assert draw() == after


def test_a_generator_goes_on_where_it_was() -> None:
    part = GeneratorState(torch.Generator().manual_seed(3))
    state = part.state_dict()
    first = torch.rand(4, generator=part.generator)
    part.load_state_dict(state)
    assert torch.equal(torch.rand(4, generator=part.generator), first)


def _set(content, value, *keys) -> None:
    for key in keys[:-1]:
        content = content[key]
    content[keys[-1]] = value


@pytest.mark.parametrize(
    ("value", "keys"),
    [
        ("1", ("progress", "step")),
        (-1, ("progress", "step")),
        (None, ("progress", "result")),
        ("x", ("progress", "result", "best_value")),
        ({"epoch": "one"}, ("progress", "result", "history", 0)),
        ("x", ("components", "optimizer", "param_groups", 0, "lr")),
        (torch.zeros(1, 8), ("components", "optimizer", "state", 1, "exp_avg")),
        ("five", ("components", "optimizer", "state", 1, "step")),
        (torch.tensor(-7000.0), ("components", "optimizer", "state", 1, "step")),
        (torch.tensor(torch.nan), ("components", "optimizer", "state", 1, "step")),
        (torch.zeros(3), ("components", "order", "state")),
        ((1, 2), ("random", "python")),
        (None, ("components",)),
    ],
)
def test_a_state_of_other_kinds_of_values_is_refused_before_a_step(train, cut_off, tmp_path, value, keys) -> None:
    cut_off(7)
    with pytest.raises(CutOff):
        train("cut")
    content = torch.load(tmp_path / "cut.pt", weights_only=True)
    _set(content, value, *keys)
    torch.save(content, tmp_path / "cut.pt")
    cut_off(1)  # a step would be another error
    with pytest.raises(UserError, match=r"cut\.pt: .*delete it to train from the start"):
        train("cut")


@pytest.mark.parametrize(("name", "value"), [("lr", 1e300), ("betas", (1e300, 1e300)), ("fused", True)])
def test_the_optimizers_options_are_those_of_the_settings(train, cut_off, tmp_path, name, value) -> None:
    undisturbed = train("whole")
    cut_off(7)
    with pytest.raises(CutOff):
        train("cut")
    content = torch.load(tmp_path / "cut.pt", weights_only=True)
    content["components"]["optimizer"]["param_groups"][0][name] = value
    torch.save(content, tmp_path / "cut.pt")
    cut_off(None)
    assert train("cut") == undisturbed
