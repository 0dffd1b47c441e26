"""Training the adapter, and the teacher as a whole: train, save, load, evaluate, export."""

import itertools
import json
from dataclasses import dataclass, field, replace

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from src.core.errors import UserError
from src.core.paths import RunFolder
from src.core.teacher_files import MANIFEST_FILE, read_manifest
from src.distill.config import DistillConfig
from src.distill.data_bridge import load_teacher_outputs
from src.student.config import SASRecConfig
from src.student.context import Resume
from src.teacher.adapter_file import WEIGHTS_FILE
from src.teacher.config import ExportSettings, LoraSettings, TeacherConfig, TinySettings
from src.teacher.engine import Engine
from src.teacher.factory import build_teacher
from src.teacher.ilora_backend import ILoRATeacher
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

    def save(self, progress, parts):
        super().save(progress, parts)
        self.steps.append(progress["step"])
        if len(self.steps) == self.kill_after:
            raise KeyboardInterrupt


def train(parts, logger, tb_writer, resume, seed=7, validate=lambda: 0.5, save_best=lambda: None):
    rows = training_rows(parts.dataset, None, seed)
    return train_adapter(parts, rows, seed, validate, save_best, resume, logger, tb_writer)


@pytest.fixture
def resume(tmp_path):
    return Saves(tmp_path / "last_state.pt")


def trained_weights(parts) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in parts.engine.lora.model.named_parameters() if p.requires_grad}


def test_training_moves_adapter_router_and_projector_only(parts, logger, tb_writer, resume):
    lora = parts.engine.lora
    before = {name: p.detach().clone() for name, p in lora.model.named_parameters()}
    statistics = lora.router.state_dict()["modules_to_save.default.bn.running_mean"].clone()

    train(parts, logger, tb_writer, resume)

    moved = {name for name, p in lora.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in lora.model.named_parameters() if p.requires_grad}
    assert not torch.equal(lora.router.state_dict()["modules_to_save.default.bn.running_mean"], statistics)
    assert not lora.model.training  # evaluation follows
    assert [step for name, _, step in tb_writer.scalars if name == "train/loss"] == [1, 2, 3]  # 12 rows by 4


@pytest.mark.parametrize(
    "epochs, interval, every, saves",
    [(1, 1, 99, [0, 3]), (3, 2, 99, [0, 6, 9]), (4, 2, 99, [0, 6, 12]), (2, 5, 99, [0, 6]), (2, 5, 2, [0, 2, 4, 6])],
)
def test_when_it_saves_its_state(parts, logger, tb_writer, resume, epochs, interval, every, saves):
    config = replace(parts.config, num_epochs=epochs, save_interval=interval, save_steps=every)
    train(replace(parts, config=config), logger, tb_writer, resume)
    assert resume.steps == saves  # 3 steps an epoch; 0: what came before the training need not be done again


def test_the_best_epoch_is_saved(parts, logger, tb_writer, resume):
    parts = replace(parts, config=replace(parts.config, num_epochs=4))
    values, best = iter([0.2, 0.4, 0.3, 0.4]), []
    result = train(parts, logger, tb_writer, resume, validate=lambda: next(values), save_best=lambda: best.append(1))
    assert (result, len(best)) == (0.4, 2)  # epochs 1 and 2; the fourth is no better
    shown = [(step, value) for name, value, step in tb_writer.scalars if name == "valid/hr@1_all"]
    assert shown == [(1, 0.2), (2, 0.4), (3, 0.3), (4, 0.4)]


@pytest.fixture
def long_parts(parts, config):
    """Two epochs with dropout, saved after every step."""
    lora = replace(config.lora, dropout=0.3)
    return replace(parts, config=replace(parts.config, num_epochs=2, save_steps=1, lora=lora))


def fresh(parts, make_lora):
    return replace(parts, engine=Engine(make_lora(parts.config.lora), parts.recommender.item_table))


def losses_of(tb_writer) -> dict[int, float]:
    return {step: value for name, value, step in tb_writer.scalars if name == "train/loss"}


@pytest.mark.parametrize("killed_after", [1, 3, 4, 6])
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
    assert min(losses_of(second)) == killed_after  # the first save is before the first step
    state, expected = again.engine.lora.state(), undisturbed.engine.lora.state()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_a_finished_training_is_not_repeated(long_parts, make_lora, logger, recorder, tmp_path):
    train(fresh(long_parts, make_lora), logger, recorder(), Saves(tmp_path / "last.pt"))
    again = recorder()
    assert train(fresh(long_parts, make_lora), logger, again, Saves(tmp_path / "last.pt")) == 0.5
    assert again.scalars == []


def test_rows_of_similar_length_share_a_micro_batch(parts):
    rows = training_rows(parts.dataset, None, 7)
    micro = _micro_batches(parts, rows, [7, 0])

    assert sorted(e.row for examples in micro for e in examples) == rows.tolist()
    assert all(len(examples) == parts.config.micro_batch_size for examples in micro)
    titles = [[sum(parts.builder.title_length(i) for i in (*e.history, *e.candidates)) for e in m] for m in micro]
    assert all(max(shorter) <= min(longer) for shorter, longer in itertools.pairwise(titles))


def test_running_out_of_memory_says_what_to_lower(parts, logger, tb_writer, resume):
    def fail(batch, gates):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    parts.engine.loss = fail
    allowed = (
        r"teacher.micro_batch_size=2: .* lower it .*set teacher.gradient_checkpointing=true.*teacher.max_history=3"
    )
    with pytest.raises(UserError, match=allowed):
        train(parts, logger, tb_writer, resume)


def test_a_loss_that_is_not_finite_is_a_user_error(parts, logger, tb_writer, resume):
    parts.engine.loss = lambda batch, gates: gates.sum() * torch.nan
    with pytest.raises(UserError, match=r"teacher\.lr=0\.01: the training loss became nan; lower it"):
        train(parts, logger, tb_writer, resume)


# --- the whole teacher --------------------------------------------------------------------------------------


@pytest.fixture
def settings(config) -> TeacherConfig:
    student = SASRecConfig(name="sasrec", emb_size=8, hidden_size=8, max_seq_len=6, batch_size=8, num_epochs=1)
    return replace(config, recommender=student, max_train_rows=8, max_valid_rows=4, max_eval_rows=4)


@pytest.fixture
def cfg(tmp_path):
    return OmegaConf.create(
        {
            "general": {"seed": 7, "overwrite": False},
            "metrics": {"ks": [1, 5], "monitor": "ndcg@5"},
            "paths": {"teacher_outputs_dir": str(tmp_path / "outputs")},
        }
    )


def evaluation_of(folder: RunFolder) -> dict:
    return json.loads(folder.eval_file("teacher").read_text())


def test_train_save_load_gives_the_same_numbers(settings, dataset, cfg, logger, tb_writer, tmp_path):
    folder = RunFolder(tmp_path / "run")
    teacher = ILoRATeacher(settings, dataset, folder, CPU)
    value = teacher.train(cfg, logger, tb_writer)
    teacher.evaluate(cfg, logger)
    first = evaluation_of(folder)
    teacher.export_for_dllm2rec(cfg, logger)
    outputs = tmp_path / "outputs"
    exported = {path.name: path.read_bytes() for path in outputs.iterdir()}

    # Another process: everything from the run folder.
    folder.eval_file("teacher").unlink()
    again = ILoRATeacher(settings, dataset, folder, CPU)
    again.evaluate(cfg, logger)
    (outputs / "manifest.json").unlink()
    again.export_for_dllm2rec(cfg, logger)

    assert evaluation_of(folder) == first
    assert 0 <= value <= 1
    assert {path.name: path.read_bytes() for path in outputs.iterdir()} == exported
    assert (first["num_users"], first["num_items"], first["answers"]["num_rows"]) == (4, 24, 4)
    assert set(first["metrics"]) == {f"{m}@{k}" for m in ("recall", "ndcg", "hit_ratio") for k in (1, 5)} | {"mrr"}


def test_a_killed_teacher_keeps_recommender_and_llm(settings, dataset, cfg, logger, tb_writer, tmp_path, monkeypatch):
    def teacher(name):
        return ILoRATeacher(replace(settings, save_steps=1), dataset, RunFolder(tmp_path / name), CPU)

    expected = teacher("whole").train(cfg, logger, tb_writer)
    save, saves = Resume.save, itertools.count(1)

    def save_and_die(self, *args):
        save(self, *args)
        if self.file.parents[2].name == "cut" and next(saves) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Resume, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        teacher("cut").train(cfg, logger, tb_writer)
    for name in ("build_tiny_llm", "train_recommender"):
        monkeypatch.setattr(f"src.teacher.ilora_backend.{name}", None)
    assert teacher("cut").train(cfg, logger, tb_writer) == expected
    whole, cut = (tmp_path / name / "models" / "teacher" / "adapter" for name in ("whole", "cut"))
    assert sorted(path.name for path in cut.iterdir()) == ["adapter_config.json", WEIGHTS_FILE]
    weights, expected = load_file(cut / WEIGHTS_FILE), load_file(whole / WEIGHTS_FILE)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_an_export_fits_the_student_and_is_not_overwritten(settings, dataset, cfg, logger, tb_writer, tmp_path, caplog):
    teacher = ILoRATeacher(settings, dataset, RunFolder(tmp_path / "run"), CPU)
    teacher.train(cfg, logger, tb_writer)
    teacher.export_for_dllm2rec(cfg, logger)

    outputs = load_teacher_outputs(
        tmp_path / "outputs", dataset, DistillConfig(name="dllm2rec", top_k=4), logger=logger
    )
    assert outputs.ranking.shape == outputs.confidence.shape == (len(dataset.train), 4)
    assert outputs.embeddings.shape == (24, 16)
    assert "cannot be verified" not in caplog.text
    manifest = read_manifest(tmp_path / "outputs")
    assert (manifest.num_rows, manifest.in_sample_rows, manifest.method) == (24, 8, "likelihood")
    before = (tmp_path / "outputs" / MANIFEST_FILE).read_bytes()
    teacher.export_for_dllm2rec(cfg, logger)  # is there already
    other = replace(settings, export=replace(settings.export, top_n=3))
    elsewhere = ILoRATeacher(replace(other, lr=0.1), dataset, RunFolder(tmp_path / "elsewhere"), CPU)
    elsewhere.train(cfg, logger, tb_writer)
    with pytest.raises(UserError, match=r"holds the export of another teacher .*general\.overwrite=true"):
        elsewhere.export_for_dllm2rec(cfg, logger)
    assert (tmp_path / "outputs" / MANIFEST_FILE).read_bytes() == before
    ILoRATeacher(other, dataset, RunFolder(tmp_path / "run"), CPU).export_for_dllm2rec(cfg, logger)  # its own
    assert read_manifest(tmp_path / "outputs").top_n == 3


def test_evaluating_what_was_never_trained(settings, dataset, cfg, logger, tmp_path):
    teacher = ILoRATeacher(settings, dataset, RunFolder(tmp_path / "run"), CPU)
    with pytest.raises(UserError, match="adapter: no trained adapter; run the teacher's training first"):
        teacher.evaluate(cfg, logger)


def test_more_candidates_than_items(settings, dataset, tmp_path):
    with pytest.raises(UserError, match="teacher.num_candidates=25: dataset toy has 24 items"):
        ILoRATeacher(replace(settings, num_candidates=25), dataset, RunFolder(tmp_path), CPU)


def test_no_llm_at_all(settings, dataset, tmp_path):
    with pytest.raises(
        UserError, match="teacher.llm_path=null: must be a local LLaMA folder, or use teacher=ilora_tiny"
    ):
        ILoRATeacher(replace(settings, tiny=None), dataset, RunFolder(tmp_path), CPU)


def test_a_wrong_llm_path_fails_before_anything_is_trained(settings, dataset, tmp_path):
    wrong = replace(settings, tiny=None, llm_path=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no such folder"):
        ILoRATeacher(wrong, dataset, RunFolder(tmp_path), CPU)


def test_a_given_llm_is_used(settings, dataset, cfg, llm_folder, logger, tb_writer, tmp_path):
    given = replace(settings, tiny=None, llm_path=str(llm_folder), gradient_checkpointing=True)
    folder = RunFolder(tmp_path / "run")
    ILoRATeacher(given, dataset, folder, CPU).train(cfg, logger, tb_writer)
    assert sorted(path.name for path in folder.model_dir("teacher").iterdir()) == [
        "adapter",
        "last_state.pt",
        "recommender",
    ]


def test_factory(dataset, tmp_path):
    section = {"name": "ilora_tiny", "num_candidates": 10, "tiny": {"hidden_size": 16, "num_heads": 2}}
    cfg = OmegaConf.create({"teacher": section})
    teacher = build_teacher(cfg, dataset, RunFolder(tmp_path), CPU)
    assert isinstance(teacher, ILoRATeacher)
    assert teacher.settings.tiny.hidden_size == 16
    with pytest.raises(UserError, match="teacher.name=gpt: must be one of ilora, ilora_tiny"):
        build_teacher(OmegaConf.create({"teacher": {"name": "gpt"}}), dataset, RunFolder(tmp_path), CPU)


# --- settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"prompt_template": "x"}, "teacher.prompt_template='x': must be one of default, movie, artist, game"),
        ({"dtype": "int8"}, "teacher.dtype='int8': must be one of float32, bfloat16"),
        ({"max_history": 0}, "teacher.max_history=0: must be an integer >= 1"),
        ({"batch_size": 0}, "teacher.batch_size=0"),
        ({"micro_batch_size": 3}, "teacher.micro_batch_size=3: must be a divisor of teacher.batch_size=64"),
        ({"num_epochs": 0}, "teacher.num_epochs=0"),
        ({"save_interval": 0}, "teacher.save_interval=0"),
        ({"save_steps": 0}, "teacher.save_steps=0"),
        ({"max_train_rows": 0}, r"teacher.max_train_rows=0: must be null \(all\) or an integer >= 1"),
        ({"max_valid_rows": 0}, "teacher.max_valid_rows=0"),
        ({"max_eval_rows": 0}, "teacher.max_eval_rows=0"),
        ({"num_candidates": 1}, "teacher.num_candidates=1: must be an integer >= 2"),
        ({"num_candidates": 9}, "teacher.export.top_n=10: must be at most teacher.num_candidates=9"),
        ({"lr": 0.0}, "teacher.lr=0.0: must be a number > 0"),
        ({"weight_decay": -1.0}, "teacher.weight_decay=-1.0: must be a number >= 0"),
    ],
)
def test_refused_teacher(changes, message):
    with pytest.raises(UserError, match=message):
        TeacherConfig(**{"name": "ilora", **changes})


def test_generation_may_export_more_than_it_shows():
    assert TeacherConfig("ilora", num_candidates=5, export=ExportSettings("generate", top_n=10)).export.top_n == 10


@pytest.mark.parametrize(
    "schema, changes, message",
    [
        (LoraSettings, {"r": 0}, "teacher.lora.r=0: must be an integer >= 1"),
        (LoraSettings, {"num_experts": 3}, "teacher.lora.num_experts=3: must be a divisor of teacher.lora.r=8"),
        (LoraSettings, {"dropout": 1.0}, r"teacher.lora.dropout=1.0: must be a number in \[0, 1\)"),
        (ExportSettings, {"method": "x"}, "teacher.export.method='x': must be one of likelihood, generate"),
        (ExportSettings, {"confidence": "x"}, "teacher.export.confidence='x': must be one of minmax, raw"),
        (ExportSettings, {"top_n": 0}, "teacher.export.top_n=0"),
        (ExportSettings, {"batch_tokens": 0}, "teacher.export.batch_tokens=0"),
        (TinySettings, {"vocab_size": 100}, "teacher.tiny.vocab_size=100: must be an integer >= 300"),
        (TinySettings, {"num_heads": 3}, "teacher.tiny.num_heads=3: must be a number whose fourfold divides"),
        (TinySettings, {"num_layers": 2}, "teacher.tiny.num_layers=2: must be an integer >= 3"),
        (TinySettings, {"pretrain_lr": 0.0}, "teacher.tiny.pretrain_lr=0.0: must be a number > 0"),
    ],
)
def test_refused_parts(schema, changes, message):
    with pytest.raises(UserError, match=message):
        schema(**changes)
