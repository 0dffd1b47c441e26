"""The training loop, and the baseline that trains with it."""

import csv
from dataclasses import replace
from math import log
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import nn

from src.core import device
from src.core.data_utils import sample_rows
from src.core.errors import UserError
from src.core.metrics import MetricsConfig
from src.student.checkpoint import load_checkpoint
from src.student.config import FitSettings, SASRecConfig
from src.student.context import GeneratorState, Resume
from src.student.evaluator import evaluate_model
from src.student.objectives import BaseLoss
from src.student.trainer_baseline import train_baseline
from src.student.training import FitResult, Validation, fit, save_history

CPU = torch.device("cpu")
METRICS = MetricsConfig(ks=[1, 5], monitor="ndcg@5")


def settings(**changes) -> FitSettings:
    base = {"batch_size": 1, "lr": 0.1, "num_epochs": 5, "weight_decay": 0.0, "grad_clip": 0.0, "patience": 10}
    return FitSettings(**{**base, **changes})


class OneWeight(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(value))


class Loss:
    """An objective without a memory; `losses` maps (model, batch) to a loss and its terms."""

    components: ClassVar[dict] = {}

    def __init__(self, losses) -> None:
        self.losses = losses

    def __call__(self, model, batch):
        return self.losses(model, batch)


def run_fit(context, values, steps=2, objective=None, model=None, saved=None, stream=None, **changes):
    """`fit` on `steps` batches of two rows with the given validation values; returns result, saves, model."""
    model = model or OneWeight(1.0)
    loader = torch.utils.data.DataLoader(
        [SimpleNamespace(row=torch.tensor([2 * step, 2 * step + 1])) for step in range(steps)], batch_size=None
    )
    loader.num_rows, loader.order = steps, GeneratorState(torch.Generator())
    objective = objective or (lambda m, batch: (m.weight * 1.0, {}))
    saved = [] if saved is None else saved  # (epoch, value, weight) of each save
    stream = stream or iter(values)
    result = fit(
        model,
        loader,
        Loss(objective),
        validation=Validation(
            monitor="ndcg@5",
            evaluate=lambda: {"ndcg@5": next(stream), "mrr": 0.5},
            save_best=lambda epoch, value: saved.append((epoch, value, model.weight.item())),
        ),
        settings=settings(num_epochs=len(values), **changes),
        context=context,
    )
    return result, saved, model


def test_best_epoch_is_kept_and_ties_keep_the_earlier(context):
    result, saved, _ = run_fit(context, [0.1, 0.3, 0.2, 0.3, 0.25])

    assert (result.best_epoch, result.best_value) == (2, 0.3)
    assert [(epoch, value) for epoch, value, _ in saved] == [(1, 0.1), (2, 0.3)]
    assert len(result.history) == 5


def test_saving_sees_the_weights_of_that_epoch(context):
    # Constant gradient: Adam moves by lr = 0.1 each step, 2 steps an epoch.
    _, saved, model = run_fit(context, [0.1, 0.3, 0.2])

    assert [weight for _, _, weight in saved] == pytest.approx([1 - 0.2, 1 - 0.4], abs=1e-5)
    assert model.weight.item() == pytest.approx(1 - 0.6, abs=1e-5)


@pytest.mark.parametrize("patience, epochs", [(1, 3), (2, 4), (3, 5), (10, 6)])
def test_early_stopping(context, patience, epochs):
    result, _, _ = run_fit(context, [0.1, 0.3, 0.2, 0.1, 0.2, 0.1], patience=patience)

    assert (result.best_epoch, len(result.history)) == (2, epochs)


def test_a_validation_of_zero_counts_as_a_first_value(context):
    result, saved, _ = run_fit(context, [0.0, 0.0])
    assert (result.best_epoch, len(saved)) == (1, 1)


def test_records_are_means_over_the_steps_and_reach_tensorboard(context):
    losses = iter([1.0, 3.0, 5.0, 9.0])

    def objective(model, batch):
        value = next(losses)
        return model.weight * 0 + value, {"loss_ce": torch.tensor(2 * value)}

    result, _, _ = run_fit(context, [0.1, 0.2], objective=objective)

    assert result.history == [
        {"epoch": 1, "loss": 2.0, "loss_ce": 4.0, "valid/ndcg@5": 0.1, "valid/mrr": 0.5},
        {"epoch": 2, "loss": 7.0, "loss_ce": 14.0, "valid/ndcg@5": 0.2, "valid/mrr": 0.5},
    ]
    assert ("loss", 7.0, 2) in context.writer.scalars
    assert ("valid/ndcg@5", 0.2, 2) in context.writer.scalars


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_is_an_error_and_saves_nothing(context, value):
    saved = []

    def objective(model, batch):
        return model.weight * value, {}

    message = (
        rf"training: loss is {value} in epoch 1, step 1 \(training rows 0, 1\); nothing was saved before; "
        r"lower student\.lr \(distill\.lr when distilling\) or set student\.grad_clip"
    )
    with pytest.raises(UserError, match=message):
        run_fit(context, [0.1], steps=1, objective=objective, saved=saved)
    assert saved == []


def test_a_term_that_is_not_finite_is_named(context):
    def objective(model, batch):
        return model.weight * 1.0, {"loss_ranking": torch.tensor(float("inf"))}

    with pytest.raises(UserError, match="training: loss_ranking is inf in epoch 1, step 1 "):
        run_fit(context, [0.1], objective=objective)


def test_the_step_its_rows_and_the_last_good_checkpoint_are_named(context, tmp_path):
    """From row 410 of epoch 3 on no loss is finite: the 206th of 350 steps, found when step 300 looks."""
    epochs = []

    def objective(model, batch):
        epochs.append(batch.row[0] == 0)
        bad = sum(epochs) == 3 and int(batch.row[0]) >= 410
        return model.weight * (torch.nan if bad else 1.0), {}

    context = replace(context, resume=Resume(tmp_path / "last_state.pt"))
    with pytest.raises(UserError) as caught:
        run_fit(context, [0.1, 0.2, 0.3], steps=350, objective=objective)
    assert (
        f"loss is nan in epoch 3, step 206 (training rows 410, 411); the last good checkpoint is that of epoch 2: "
        f"{tmp_path / 'last_state.pt'}; lower" in str(caught.value)
    )
    assert len(epochs) == 2 * 350 + 300


def test_weights_that_the_last_step_has_ruined_are_told_with_the_epoch(context, tmp_path):
    def objective(model, batch):
        return model.weight * 1.0, {}

    def evaluations():
        yield 0.1
        raise UserError("evaluation: the model's scores contain NaN; training diverged, lower the learning rate")

    context = replace(context, resume=Resume(tmp_path / "last_state.pt"))
    stream = evaluations()
    with pytest.raises(UserError, match=r"contain NaN.*; after epoch 2; the last good checkpoint is that of epoch 1: "):
        run_fit(context, [0.1, 0.2], objective=objective, stream=stream)


def test_gradient_clipping(context):
    seen = []

    model = OneWeight(1.0)
    model.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.item()))

    def objective(m, batch):
        return m.weight * 100.0, {}

    run_fit(context, [0.1], steps=1, objective=objective, model=model, grad_clip=2.0)
    assert seen == [100.0]
    assert model.weight.grad.item() == pytest.approx(2.0, rel=1e-4)

    run_fit(context, [0.1], steps=1, objective=objective, model=model, grad_clip=0.0)
    assert model.weight.grad.item() == 100.0


def test_a_linear_learning_rate_falls_to_zero_with_the_last_step(context):
    # Adam moves a weight under a constant gradient by its learning rate: 0.1 * (1 + 3/4 + 2/4 + 1/4) in four steps
    _, _, model = run_fit(context, [0.1, 0.2], steps=2, lr_schedule="linear")
    assert model.weight.item() == pytest.approx(1 - 0.1 * 2.5, abs=1e-5)
    _, _, model = run_fit(context, [0.1, 0.2], steps=2)
    assert model.weight.item() == pytest.approx(1 - 0.1 * 4, abs=1e-5)


def test_weight_decay_pulls_towards_zero(context):
    # The loss has no gradient, so only the decay moves the weight: one Adam step of lr against its sign.
    def objective(m, batch):
        return m.weight * 0.0, {}

    _, _, model = run_fit(context, [0.1], steps=1, objective=objective, weight_decay=0.01)
    assert model.weight.item() == pytest.approx(1.0 - 0.1, abs=1e-4)
    _, _, model = run_fit(context, [0.1], steps=1, objective=objective)
    assert model.weight.item() == 1.0


def test_history_file(tmp_path):
    result = FitResult(2, 0.5, [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.5}])
    save_history(result, tmp_path / "history.csv")
    with (tmp_path / "history.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"epoch": "1", "loss": "2.0"}, {"epoch": "2", "loss": "1.5"}]


# --- the baseline -------------------------------------------------------------------------------------------


def student(**changes) -> SASRecConfig:
    base = {"emb_size": 8, "hidden_size": 8, "max_seq_len": 5, "batch_size": 8, "lr": 0.01, "num_epochs": 3}
    return SASRecConfig(name="sasrec", **{**base, **changes})


@pytest.fixture
def train(tiny_dataset, context, tmp_path):
    def run(name: str, seed: int = 7, **changes):
        folder = tmp_path / name
        seeded = replace(context, seed=seed)
        result = train_baseline(student(**changes), tiny_dataset, metrics=METRICS, folder=folder, context=seeded)
        return result, folder

    return run


def test_equal_seeds_train_equally_and_others_do_not(train):
    first, one = train("one")
    torch.rand(3)  # what happened before must not matter
    again, two = train("two")
    other, three = train("three", seed=8)

    assert first.history == again.history
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    assert first.history != other.history
    assert (one / "model.safetensors").read_bytes() != (three / "model.safetensors").read_bytes()


def test_train_then_load_gives_the_same_validation_metrics(train, tiny_dataset):
    result, folder = train("one", num_epochs=6)
    model, info = load_checkpoint(folder)

    metrics = evaluate_model(model, tiny_dataset.valid, tiny_dataset, METRICS.ks, CPU).metrics

    record = result.history[result.best_epoch - 1]
    assert metrics == {name.removeprefix("valid/"): record[name] for name in record if name.startswith("valid/")}
    assert metrics["ndcg@5"] == result.best_value == info.valid_value
    assert result.best_value == max(record["valid/ndcg@5"] for record in result.history)
    assert (info.epoch, info.seed, info.monitor) == (result.best_epoch, 7, "ndcg@5")
    assert (info.dataset, info.dataset_fingerprint) == ("tiny", tiny_dataset.fingerprint)
    assert info.teacher_manifest_sha256 is None


def test_a_sample_of_the_validation_rows_finds_the_best_epoch(train, tiny_dataset):
    result, folder = train("one", num_epochs=6, max_valid_rows=3)
    again, _ = train("two", seed=8, max_valid_rows=3)
    model, info = load_checkpoint(folder)

    rows = sample_rows(tiny_dataset.valid, 3)
    assert len(rows) == 3 < len(tiny_dataset.valid)
    metrics = evaluate_model(model, rows, tiny_dataset, METRICS.ks, CPU).metrics
    assert metrics["ndcg@5"] == result.best_value
    assert info.monitor == "ndcg@5 (a fixed sample of 3 of 8 rows)"
    # Hits among three rows are thirds, with any seed.
    assert all((3 * record["valid/recall@5"]) % 1 == 0 for record in (*result.history, *again.history))


def test_a_sample_of_all_rows_is_all_rows(train, tiny_dataset):
    whole, _ = train("one")
    sampled, folder = train("two", max_valid_rows=len(tiny_dataset.valid) + 1)
    assert sampled.history == whole.history
    assert load_checkpoint(folder)[1].monitor == "ndcg@5"


def test_too_little_memory_says_what_to_lower_and_what_was_asked_for(train, monkeypatch):
    monkeypatch.setattr(BaseLoss, "__call__", lambda *args: torch.empty(2**50))  # 4 PiB
    message = (
        r"student\.batch_size=8 \(distill\.batch_size when distilling\), 12 items: the memory does not suffice "
        r"\(4,194,304\.00 GiB more were asked for\); lower it, student\.loss_chunk \(of student\.loss=ce\) or "
        r"student\.emb_size"
    )
    with pytest.raises(UserError, match=message):
        train("one")


@pytest.mark.parametrize("flags, warned", [("flags : avx2", True), ("flags : avx2 avx512_bf16", False)])
def test_mixed_precision_without_bfloat16_is_warned_of(train, monkeypatch, tmp_path, caplog, flags, warned):
    (tmp_path / "cpuinfo").write_text(flags)
    monkeypatch.setattr(device, "_CPU_INFO", tmp_path / "cpuinfo")
    train("one", num_epochs=1, mixed_precision=True)
    train("two", num_epochs=1)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == warned
    assert all("student.mixed_precision=true: " in text and "no instructions for bfloat16" in text for text in warnings)


def test_training_rows_are_learnt(train):
    """From the loss of a uniform guess over 12 items, log 12, to a tenth of it."""
    result, _ = train("one", num_epochs=40, patience=40, dropout=0.0, lr=0.02)

    assert result.history[0]["loss"] == pytest.approx(log(12), rel=0.2)
    assert result.history[-1]["loss"] < log(12) / 10


def test_a_learning_rate_that_diverges_is_a_user_error(train):
    with pytest.raises(UserError, match="NaN|training: loss is"):
        train("one", lr=1e30, num_epochs=5)
