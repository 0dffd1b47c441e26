"""Training the adapter: rows, steps, and what an interrupted training goes on from."""

import itertools
from dataclasses import dataclass, field, replace

import pytest
import torch

from src.core.errors import UserError
from src.student.context import Resume, RunContext
from src.teacher.adapter.prompted_lm import PromptedLM
from src.teacher.training import _micro_batches, train_adapter, training_rows

CPU = torch.device("cpu")


# --- rows and steps -----------------------------------------------------------------------------------------


def test_training_rows_have_three_items_of_history(dataset):
    rows = training_rows(dataset, None, seed=7)
    assert rows.tolist() == [i for i in range(len(dataset.train)) if len(dataset.train.history(i)) >= 3]
    assert 0 < len(rows) < len(dataset.train)


def test_a_sample_of_the_training_rows(dataset):
    every = training_rows(dataset, None, seed=7)
    some = training_rows(dataset, 5, seed=7)

    assert len(some) == len(set(some.tolist())) == 5
    assert set(some.tolist()) <= set(every.tolist())
    assert some.tolist() == sorted(some.tolist()) == training_rows(dataset, 5, seed=7).tolist()
    assert some.tolist() != training_rows(dataset, 5, seed=8).tolist()
    assert training_rows(dataset, 10**6, seed=7).tolist() == every.tolist()


def test_no_row_is_long_enough(make_dataset):
    short = make_dataset([[0, 1, 2, 3]], num_items=4, name="short")
    with pytest.raises(UserError, match="dataset short: no training row has 3 items of history"):
        training_rows(short, None, seed=7)


@dataclass(frozen=True)
class Saves(Resume):
    """Keeps what was saved when, and may be killed after some saves."""

    steps: list[int] = field(default_factory=list)
    kill_after: int | None = None

    def save(self, progress, teacher):
        super().save(progress, teacher)
        self.steps.append(progress["step"])
        if len(self.steps) == self.kill_after:
            raise KeyboardInterrupt


def train(teacher, logger, tb_writer, resume, *, validate=lambda: 0.5, save_best=lambda: None):
    context = RunContext(seed=7, device=CPU, logger=logger, writer=tb_writer, resume=resume)
    rows = training_rows(teacher.dataset, None, seed=7)
    return train_adapter(teacher, rows, validate=validate, save_best=save_best, context=context)


@pytest.fixture
def resume(tmp_path):
    return Saves(tmp_path / "last_state.pt")


def trained_weights(teacher) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in teacher.lm.lora.model.named_parameters() if p.requires_grad}


def test_training_moves_adapter_router_and_projector_only(teacher, logger, tb_writer, resume):
    lora = teacher.lm.lora
    before = {name: p.detach().clone() for name, p in lora.model.named_parameters()}
    statistics = lora.router.state_dict()["modules_to_save.default.bn.running_mean"].clone()

    train(teacher, logger, tb_writer, resume)

    moved = {name for name, p in lora.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in lora.model.named_parameters() if p.requires_grad}
    assert not torch.equal(lora.router.state_dict()["modules_to_save.default.bn.running_mean"], statistics)
    assert not lora.model.training  # evaluation follows
    assert [step for name, _, step in tb_writer.scalars if name == "train/loss"] == [1, 2, 3]  # 12 rows by 4


@pytest.mark.parametrize(
    "epochs, interval, every, saves",
    [(1, 1, 99, [3]), (3, 2, 99, [6, 9]), (4, 2, 99, [6, 12]), (2, 5, 99, [6]), (2, 5, 2, [2, 4, 6])],
)
def test_when_it_saves_its_state(teacher, logger, tb_writer, resume, epochs, interval, every, saves):
    config = replace(teacher.config, num_epochs=epochs, save_interval=interval, save_steps=every)
    train(replace(teacher, config=config), logger, tb_writer, resume)
    assert resume.steps == saves  # 3 steps an epoch


def test_the_best_epoch_is_saved(teacher, logger, tb_writer, resume):
    teacher = replace(teacher, config=replace(teacher.config, num_epochs=4))
    values, best = iter([0.2, 0.4, 0.3, 0.4]), []
    result = train(teacher, logger, tb_writer, resume, validate=lambda: next(values), save_best=lambda: best.append(1))
    assert (result, len(best)) == (0.4, 2)  # epochs 1 and 2; the fourth is no better
    shown = [(step, value) for name, value, step in tb_writer.scalars if name == "valid/hr@1_all"]
    assert shown == [(3, 0.2), (6, 0.4), (9, 0.3), (12, 0.4)]  # at the optimizer's steps, 3 an epoch


@pytest.fixture
def long_parts(teacher, config):
    """Two epochs with dropout, saved after every step."""
    lora = replace(config.lora, dropout=0.3)
    return replace(teacher, config=replace(teacher.config, num_epochs=2, save_steps=1, lora=lora))


def fresh(teacher, make_lora):
    return replace(teacher, lm=PromptedLM(make_lora(teacher.config.lora), teacher.recommender.item_table))


def losses_of(tb_writer) -> dict[int, float]:
    return {step: value for name, value, step in tb_writer.scalars if name == "train/loss"}


@pytest.mark.parametrize("killed_after", [1, 3, 5])
def test_a_killed_training_goes_on_exactly(long_parts, make_lora, logger, recorder, tmp_path, killed_after):
    whole, first, second = recorder(), recorder(), recorder()
    undisturbed = fresh(long_parts, make_lora)
    train(undisturbed, logger, whole, Saves(tmp_path / "whole.pt"))

    with pytest.raises(KeyboardInterrupt):
        train(fresh(long_parts, make_lora), logger, first, Saves(tmp_path / "cut.pt", kill_after=killed_after))
    torch.rand(5)  # another process would have another random state
    again = fresh(long_parts, make_lora)
    best = train(again, logger, second, Saves(tmp_path / "cut.pt"))

    assert best == 0.5
    assert losses_of(first) | losses_of(second) == losses_of(whole)
    assert min(losses_of(second)) == killed_after + 1
    state, expected = again.lm.lora.state(), undisturbed.lm.lora.state()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_a_finished_training_is_not_repeated(long_parts, make_lora, logger, recorder, tmp_path):
    train(fresh(long_parts, make_lora), logger, recorder(), Saves(tmp_path / "last.pt"))
    again = recorder()
    assert train(fresh(long_parts, make_lora), logger, again, Saves(tmp_path / "last.pt")) == 0.5
    assert again.scalars == []


def test_without_a_place_for_its_state_it_keeps_none(teacher, logger, tb_writer, tmp_path):
    assert train(teacher, logger, tb_writer, None) == 0.5
    assert not any(tmp_path.glob("*.pt"))


def test_rows_of_similar_length_share_a_micro_batch(teacher):
    rows = training_rows(teacher.dataset, None, 7)
    micro = _micro_batches(teacher, rows, [7, 0])

    assert sorted(e.row for examples in micro for e in examples) == rows.tolist()
    assert all(len(examples) == teacher.config.micro_batch_size for examples in micro)
    titles = [[sum(teacher.builder.title_length(i) for i in (*e.history, *e.candidates)) for e in m] for m in micro]
    assert all(max(shorter) <= min(longer) for shorter, longer in itertools.pairwise(titles))


def test_running_out_of_memory_says_what_to_lower(teacher, logger, tb_writer, resume):
    def fail(batch, gates):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    teacher.lm.loss = fail
    allowed = (
        r"teacher.micro_batch_size=2: .* lower it .*set teacher.gradient_checkpointing=true.*teacher.max_history=3"
    )
    with pytest.raises(UserError, match=allowed):
        train(teacher, logger, tb_writer, resume)


def test_a_loss_that_is_not_finite_is_a_user_error(teacher, logger, tb_writer, resume):
    """In the first step no rate has changed anything; in the fifth the four before were fine."""
    teacher = replace(teacher, config=replace(teacher.config, num_epochs=2, save_steps=1))
    finite, steps, nan = teacher.lm.loss, itertools.count(), torch.nan
    teacher.lm.loss = lambda batch, gates: gates.sum() * nan
    rows = r"\(training rows (\d+, ){3}\d+\)"
    with pytest.raises(
        UserError, match=rf"loss is nan in step 1 {rows}; nothing was saved before; the LLM computes no"
    ):
        train(teacher, logger, tb_writer, resume)

    parts = teacher.config.batch_size // teacher.config.micro_batch_size
    teacher.lm.loss = lambda batch, gates: finite(batch, gates) * (nan if next(steps) >= 4 * parts else 1)
    kept = rf"the last good checkpoint is that of step 4: {resume.file}; lower teacher\.lr=0\.01"
    with pytest.raises(UserError, match=rf"loss is nan in step 5 {rows}; {kept}"):
        train(teacher, logger, tb_writer, resume)


def test_an_adapter_that_the_last_step_has_ruined_is_not_validated(teacher, logger, tb_writer, resume):
    """Twelve rows in one step: its loss is that of the adapter before it."""
    teacher = replace(teacher, config=replace(teacher.config, num_epochs=1, batch_size=12, lr=float("inf")))
    message = (
        r"the adapter's weights are not finite in step 1 \(training rows .* and 4 others\).*; lower teacher\.lr=inf"
    )
    with pytest.raises(UserError, match=message):
        train(teacher, logger, tb_writer, resume, validate=lambda: pytest.fail("validated"))
