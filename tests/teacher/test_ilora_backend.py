"""The teacher as a whole: train, save, load, evaluate, export, and what each step is made from."""

import hashlib
import itertools
import json
import logging
import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.core import device
from src.core.errors import UserError
from src.core.files import LOCK_FILE, sha256_file
from src.core.paths import RunFolder
from src.core.teacher_files import EMBEDDINGS_FILE, MANIFEST_FILE, read_manifest
from src.distill.config import DistillConfig
from src.distill.data_bridge import load_teacher_outputs
from src.teacher import ilora_backend
from src.teacher.adapter.adapter_file import WEIGHTS_FILE
from src.teacher.factory import build_teacher
from src.teacher.ilora_backend import ILoRATeacher
from src.teacher.llm import load
from src.teacher.prompt.builder import PromptBuilder
from src.teacher.prompt.wording import PromptConfig

CPU = torch.device("cpu")


@pytest.fixture
def make_teacher(dataset, make_settings, tmp_path):
    """A teacher in a run folder of its own; changes are of `teacher`."""

    def make(name: str = "run", **changes: object) -> ILoRATeacher:
        folder = RunFolder(tmp_path / name)
        return ILoRATeacher(make_settings(**changes).teacher, dataset=dataset, folder=folder, device=CPU)

    return make


def evaluation_of(folder: RunFolder) -> dict:
    return json.loads(folder.eval_file("teacher").read_text())


def exported(outputs: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in outputs.iterdir() if path.name != LOCK_FILE}


def test_train_save_load_gives_the_same_numbers(make_teacher, make_settings, logger, tb_writer, tmp_path):
    settings, teacher = make_settings(), make_teacher()
    value = teacher.train(settings, logger, tb_writer)
    teacher.evaluate(settings, logger)
    first = evaluation_of(teacher.folder)
    teacher.export_for_dllm2rec(settings, logger)
    outputs = tmp_path / "outputs"
    written = exported(outputs)

    # Another process: everything from the run folder.
    teacher.folder.eval_file("teacher").unlink()
    again = make_teacher()
    again.evaluate(settings, logger)
    (outputs / "manifest.json").unlink()
    again.export_for_dllm2rec(settings, logger)

    assert evaluation_of(again.folder) == first
    assert 0 <= value <= 1
    assert exported(outputs) == written
    assert (first["num_users"], first["num_items"], first["answers"]["num_rows"]) == (4, 24, 4)
    assert set(first["metrics"]) == {f"{m}@{k}" for m in ("recall", "ndcg", "hit_ratio") for k in (1, 5)} | {"mrr"}


def test_the_same_settings_make_the_same_adapter_files(make_teacher, make_settings, logger, recorder):
    folders = []
    for name in ("one", "two"):
        teacher = make_teacher(name)
        teacher.train(make_settings(), logger, recorder())
        folders.append(teacher.paths.adapter)
    one, two = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert sorted(one) == ["adapter_config.json", WEIGHTS_FILE]
    assert one[WEIGHTS_FILE] == two[WEIGHTS_FILE]
    config = json.loads(one["adapter_config.json"])
    assert config["target_modules"] == sorted(config["target_modules"])


class Died(Exception):
    """The process ended here."""


def dying(function, call: int):
    """`function`, after whose `call`-th call the process dies."""
    calls = itertools.count(1)

    def called(*args, **options):
        result = function(*args, **options)
        if next(calls) == call:
            raise Died
        return result

    return called


@pytest.mark.parametrize(
    "dies_in, made_again",
    [
        ("ilora_backend.train_recommender", ["recommender", "tiny LLM"]),  # before its record is complete
        ("ilora_backend.build_tiny_llm", ["tiny LLM"]),
        ("training._step", []),
    ],
)
def test_a_teacher_that_died_makes_again_what_was_not_finished(
    make_teacher, make_settings, logger, tb_writer, monkeypatch, dies_in, made_again
):
    settings = make_settings(save_steps=1)
    whole = make_teacher("whole", save_steps=1)
    expected = whole.train(settings, logger, tb_writer)
    module, name = (import_module(f"src.teacher.{dies_in.split('.')[0]}"), dies_in.split(".")[1])
    with monkeypatch.context() as patch:
        patch.setattr(module, name, dying(getattr(module, name), 1))
        with pytest.raises(Died):
            make_teacher("cut", save_steps=1).train(settings, logger, tb_writer)

    made = []
    for name, label in (("train_recommender", "recommender"), ("build_tiny_llm", "tiny LLM")):
        original = getattr(ilora_backend, name)
        monkeypatch.setattr(
            ilora_backend, name, lambda *a, original=original, label=label, **o: made.append(label) or original(*a, **o)
        )
    cut = make_teacher("cut", save_steps=1)
    assert cut.train(settings, logger, tb_writer) == expected
    assert made == made_again
    weights, wanted = load_file(cut.paths.adapter_weights), load_file(whole.paths.adapter_weights)
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    "changes, made_again",
    [
        ({"lr": 0.1}, []),
        ({"tiny": {"pretrain_steps": 1}}, ["build_tiny_llm"]),
        ({"recommender": {"lr": 0.1}}, ["train_recommender"]),
        ({"max_history": 2}, ["build_tiny_llm"]),
    ],
)
def test_recommender_and_llm_are_made_once(
    make_teacher, make_settings, logger, tb_writer, monkeypatch, changes, made_again
):
    teacher = make_teacher()
    teacher.train(make_settings(), logger, tb_writer)
    teacher.folder.last_state_file("teacher").unlink()
    first = teacher.config
    inner = {"tiny": first.tiny, "recommender": first.recommender}
    changed = {key: replace(inner[key], **value) if key in inner else value for key, value in changes.items()}
    made = []
    for name in ("train_recommender", "build_tiny_llm"):
        original = getattr(ilora_backend, name)
        monkeypatch.setattr(
            ilora_backend, name, lambda *a, original=original, name=name, **o: made.append(name) or original(*a, **o)
        )

    make_teacher(**changed).train(make_settings(**changed), logger, tb_writer)

    assert made == made_again


def test_a_damaged_recommender_is_trained_again(make_teacher, make_settings, logger, tb_writer, caplog):
    caplog.set_level(logging.INFO)
    teacher = make_teacher()
    teacher.train(make_settings(), logger, tb_writer)
    weights = teacher.paths.recommender_weights
    before = weights.read_bytes()
    weights.write_bytes(before[:-1])
    make_teacher().train(make_settings(), logger, tb_writer)
    assert weights.read_bytes() == before
    assert f"the frozen recommender is made again: {weights} is no longer what was written" in caplog.text


def test_curves_of_the_recommender_and_the_tiny_llm_lie_in_folders_of_their_own(
    make_teacher, make_settings, logger, tb_writer
):
    """They count epochs and pretraining steps; the adapter's count optimizer steps, and are resumed."""
    tiny = replace(make_settings().teacher.tiny, pretrain_steps=50)
    teacher = make_teacher(tiny=tiny)
    teacher.train(make_settings(tiny=tiny), logger, tb_writer)
    names = {name for name, _, _ in tb_writer.scalars}
    assert names == {"train/loss", "train/lr", "train/tokens_per_s", "valid/hr@1_all"}
    assert {step for name, _, step in tb_writer.scalars if name == "valid/hr@1_all"} == {2}  # 8 rows by 4
    for folder, tag in (("recommender", "valid/ndcg@5"), ("tiny_llm", "loss")):
        events = EventAccumulator(str(teacher.folder.tensorboard_dir("teacher") / folder))
        events.Reload()
        assert tag in events.Tags()["scalars"]


def test_time_can_be_noted_while_a_step_runs(make_teacher, make_settings, logger, tb_writer, monkeypatch):
    """After the recommender, after the tiny LLM, after each saved step; and after each shard of the export."""
    monkeypatch.setattr("src.teacher.scoring.shards.SHARD_ROWS", 10)
    teacher, settings, noted = make_teacher(save_steps=1), make_settings(save_steps=1), []
    teacher.on_save, teacher.on_shard = lambda: noted.append("save"), lambda: noted.append("shard")
    teacher.train(settings, logger, tb_writer)
    teacher.export_for_dllm2rec(settings, logger)
    assert noted == ["save"] * (2 + 2) + ["shard"] * 3  # two steps; 24 rows by 10


def test_an_export_fits_the_student_and_is_not_overwritten(
    make_teacher, make_settings, dataset, logger, tb_writer, tmp_path, caplog
):
    settings, teacher = make_settings(), make_teacher()
    teacher.train(settings, logger, tb_writer)
    teacher.export_for_dllm2rec(settings, logger)

    outputs = load_teacher_outputs(
        tmp_path / "outputs", dataset, DistillConfig(name="dllm2rec", top_k=4), logger=logger
    )
    assert outputs.ranking.shape == outputs.confidence.shape == (len(dataset.train), 4)
    assert outputs.embeddings.shape == (24, 16)
    assert "cannot be verified" not in caplog.text
    manifest = read_manifest(tmp_path / "outputs")
    assert (manifest.num_rows, manifest.in_sample_rows, manifest.method) == (24, 8, "likelihood")
    before = (tmp_path / "outputs" / MANIFEST_FILE).read_bytes()
    teacher.export_for_dllm2rec(settings, logger)  # is there already
    elsewhere = make_teacher("elsewhere", lr=0.1)
    elsewhere.train(make_settings(lr=0.1), logger, tb_writer)
    with pytest.raises(UserError, match=r"holds the export of another teacher .*general\.overwrite=true"):
        elsewhere.export_for_dllm2rec(make_settings(lr=0.1), logger)
    assert (tmp_path / "outputs" / MANIFEST_FILE).read_bytes() == before
    shorter = {"export": replace(settings.teacher.export, top_n=3)}
    make_teacher(**shorter).export_for_dllm2rec(make_settings(**shorter), logger)  # its own
    assert read_manifest(tmp_path / "outputs").top_n == 3


@pytest.mark.parametrize("step", ["evaluate", "export_for_dllm2rec"])
def test_what_was_never_trained(make_teacher, make_settings, logger, step):
    with pytest.raises(UserError, match="adapter: no trained adapter; run the teacher's training first"):
        getattr(make_teacher(), step)(make_settings(), logger)


def test_more_candidates_than_items(make_teacher):
    with pytest.raises(UserError, match="teacher.num_candidates=25: dataset toy has 24 items"):
        make_teacher(num_candidates=25)


def test_no_llm_at_all(make_teacher):
    with pytest.raises(
        UserError, match="teacher.llm_path=null: must be a local LLaMA folder or a hub id, .* or use teacher=ilora_tiny"
    ):
        make_teacher(tiny=None)


def test_a_wrong_llm_path_fails_before_anything_is_trained(make_teacher, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        make_teacher(tiny=None, llm_path=str(tmp_path / "nowhere"))


def test_an_llm_that_cannot_be_used_is_refused_before_the_recommender_is_trained(
    make_teacher, make_settings, llm_folder, logger, tb_writer, tmp_path
):
    broken = shutil.copytree(llm_folder, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"intermediate_size": 99}))
    given = {"tiny": None, "llm_path": str(broken)}
    teacher = make_teacher(**given)
    with pytest.raises(
        UserError, match=r"mlp\.down_proj\.weight holds .*, the model of its config\.json wants \(16, 99\)"
    ):
        teacher.train(make_settings(**given), logger, tb_writer)
    assert not teacher.paths.recommender.exists()
    (broken / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(UserError, match=r"quantised \(gptq, says config\.json\)"):
        make_teacher(**given)


def test_a_given_llm_is_used(make_teacher, make_settings, llm_folder, logger, tb_writer):
    given = {"tiny": None, "llm_path": str(llm_folder), "gradient_checkpointing": True}
    teacher = make_teacher(**given)
    teacher.train(make_settings(**given), logger, tb_writer)
    models = sorted(path.name for path in teacher.folder.model_dir("teacher").iterdir())
    assert models == ["adapter", "last_state.pt", "recommender"]
    assert [path.name for path in (teacher.folder.root / "records").iterdir()] == ["recommender.json"]


def test_factory(dataset, make_settings, tmp_path):
    where = {"dataset": dataset, "folder": RunFolder(tmp_path), "device": CPU}
    teacher = build_teacher(make_settings(num_candidates=10), **where)
    assert isinstance(teacher, ILoRATeacher)
    assert teacher.config.num_candidates == 10
    with pytest.raises(UserError, match="teacher.name=gpt: must be one of ilora, ilora_small, ilora_tiny"):
        build_teacher(make_settings(name="gpt"), **where)


# --- what the steps are made from ---------------------------------------------------------------------------


def test_each_step_is_made_from_what_decides_it(make_teacher, make_settings, dataset, logger, tb_writer):
    settings, teacher = make_settings(engine="auto", save_steps=3), make_teacher(engine="auto", save_steps=3)
    train = teacher.made_from("train", settings)
    assert train["teacher.engine"] in ("native", "submodule")  # the one that is used
    assert train["teacher.recommender.max_seq_len"] == dataset.max_seq_len == 6
    assert (train["the data set"], train["general.seed"]) == (dataset.fingerprint, 7)
    assert (train["metrics.monitor"], train["teacher.tiny.pretrain_steps"]) == ("ndcg@5", 2)
    without = ("save_interval", "save_steps", "gradient_checkpointing", "max_eval_rows", "export.top_n")
    assert not {f"teacher.{key}" for key in without} & train.keys()
    assert train["teacher.micro_batch_size"] == 2  # an interrupted training may go on with another

    before = teacher.made_from("export", settings)
    assert before["the adapter"] is None and before["the frozen recommender"] is None
    teacher.train(settings, logger, tb_writer)
    export, evaluation = (teacher.made_from(step, settings) for step in ("export", "evaluate"))
    adapter = hashlib.sha256(teacher.paths.adapter_weights.read_bytes()).hexdigest()
    assert export["the adapter"] == evaluation["the adapter"] == adapter
    assert teacher.made_from("train", settings) == train
    assert {"teacher.export.top_n", "teacher.export.confidence"} <= export.keys()
    assert {"teacher.export.batch_tokens", "teacher.export.rows", "teacher.lr"} & export.keys() == set()
    own = {"metrics.ks": [1, 5], "teacher.max_eval_rows": 4}
    assert {key: evaluation[key] for key in evaluation.keys() - export.keys()} == own


@pytest.mark.parametrize(
    "changes, steps",
    [
        ({"lr": 0.1}, {"train"}),
        ({"micro_batch_size": 4}, {"train"}),
        ({"save_steps": 7, "gradient_checkpointing": True}, set()),
        ({"max_eval_rows": 3}, {"evaluate"}),
        ({"max_history": 2}, {"train", "export", "evaluate"}),
        ({"prompt_template": "movie"}, {"train", "export", "evaluate"}),
        ({"prompt": PromptConfig(verb="took")}, {"train", "export", "evaluate"}),
        ({"prompt": PromptConfig(verb="chose")}, set()),  # as it was
        ({"export": {"top_n": 2}}, {"export"}),
        ({"export": {"batch_tokens": 9}}, set()),
        ({"export": {"candidates": "sampled"}}, {"export", "evaluate"}),
        ({"export": {"embedding_pooling": "mean"}}, {"export"}),
        ({"export": {"max_rows": 3}}, set()),  # the rows themselves are noted
        ({"attn_implementation": "eager"}, set()),
        ({"dtype": "auto"}, set()),  # float32, as it was
    ],
)
def test_which_steps_a_setting_touches(make_teacher, make_settings, monkeypatch, tmp_path, changes, steps):
    monkeypatch.setattr(device, "_CPU_INFO", tmp_path / "nothing")
    first, teacher = make_settings(), make_teacher()
    changed = {key: replace(first.teacher.export, **v) if key == "export" else v for key, v in changes.items()}
    second, other = make_settings(**changed), make_teacher(**changed)
    every = ("train", "export", "evaluate")
    assert {step for step in every if teacher.made_from(step, first) != other.made_from(step, second)} == steps


def test_given_models_are_known_by_their_contents(make_teacher, make_settings, logger, tb_writer):
    own = make_teacher("own")
    own.train(make_settings(), logger, tb_writer)
    given = {"rec_model_path": str(own.paths.recommender), "init_adapter": str(own.paths.adapter)}
    teacher = make_teacher("other", **given)
    train = teacher.made_from("train", make_settings(**given))
    assert train["the frozen recommender"] == sha256_file(own.paths.recommender_weights)
    assert train["the initial adapter"] == sha256_file(own.paths.adapter_weights)
    assert make_teacher().made_from("train", make_settings())["the initial adapter"] is None


def test_a_given_llm_is_known_by_its_contents_wherever_it_lies(make_teacher, make_settings, llm_folder, tmp_path):
    """Rankings by generated answers are made of embeddings, the others are not."""
    moved = shutil.copytree(llm_folder, tmp_path / "moved")
    own, other = ({"tiny": None, "llm_path": str(path)} for path in (llm_folder, moved))
    steps = ("train", "export", "evaluate")
    made = [make_teacher(**given).made_from(step, make_settings(**given)) for given in (own, other) for step in steps]
    assert made[:3] == made[3:]
    weights = bytearray((moved / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (moved / "model.safetensors").write_bytes(weights)
    teacher = make_teacher(**other)
    for step, before in zip(steps, made, strict=False):
        after = teacher.made_from(step, make_settings(**other))
        assert {key for key in after if after[key] != before[key]} == {"the base model"}


def test_what_this_machine_cannot_do_is_refused_before_anything_is_loaded(make_teacher, monkeypatch):
    with pytest.raises(UserError, match=r"teacher.load_in_4bit=true: needs a CUDA device, .* computes on cpu"):
        make_teacher(load_in_4bit=True)
    monkeypatch.setattr(load, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package bitsandbytes, .*`poetry install --extras quantization`"):
        load.require_4bit(torch.device("cuda"))
    layer = replace(make_teacher().config.export, embedding_layer=4)
    with pytest.raises(UserError, match=r"embedding_layer=4: the LLM has 3 layers; use 0 .* to 3, or -1 .* to -4"):
        make_teacher(export=layer)


def test_without_epochs_the_llm_is_evaluated_and_exported_as_it_is(
    make_teacher, make_settings, monkeypatch, logger, tb_writer, tmp_path
):
    """The adapter adds nothing, and no prompt carries items through a projector that has learnt nothing."""
    settings, teacher = make_settings(num_epochs=0), make_teacher(num_epochs=0)
    prompts: list[bool] = []
    prompt = PromptBuilder.prompt

    def noted(self, *args, embed, **options):
        prompts.append(embed)
        return prompt(self, *args, embed=embed, **options)

    monkeypatch.setattr(PromptBuilder, "prompt", noted)
    value = teacher.train(settings, logger, tb_writer)
    state = load_file(teacher.paths.adapter_weights)
    assert all((tensor == 0).all() for name, tensor in state.items() if "lora_B" in name)
    prompts.clear()  # of the tiny LLM's pretraining
    again = make_teacher(num_epochs=0)
    again.evaluate(settings, logger)
    again.export_for_dllm2rec(settings, logger)
    assert prompts and not any(prompts)
    assert 0 <= value <= 1
    assert evaluation_of(again.folder)["model"] == "ilora_tiny, not trained"
    manifest = read_manifest(tmp_path / "outputs")
    assert (manifest.num_rows, manifest.in_sample_rows) == (24, 0)


def test_an_export_of_embeddings_alone(make_teacher, make_settings, dataset, logger, tb_writer, tmp_path, monkeypatch):
    """Into a folder that held rankings; distilled where no rankings are asked for."""
    settings, teacher = make_settings(), make_teacher()
    teacher.train(settings, logger, tb_writer)
    teacher.export_for_dllm2rec(settings, logger)
    whole = exported(tmp_path / "outputs")
    alone = {"export": replace(settings.teacher.export, rankings=False)}
    teacher = make_teacher(**alone)
    teacher.export_for_dllm2rec(make_settings(**alone), logger)

    outputs = tmp_path / "outputs"
    assert (
        exported(outputs).keys() == {EMBEDDINGS_FILE, MANIFEST_FILE} == {Path(n).name for n in teacher.files("export")}
    )
    assert exported(outputs)[EMBEDDINGS_FILE] == whole[EMBEDDINGS_FILE]
    manifest = read_manifest(outputs)
    assert (manifest.num_rows, manifest.top_n, manifest.method, manifest.candidates) == (0, 0, "none", "none")
    again = make_teacher(**alone)
    monkeypatch.setattr(again, "_loaded", None)  # is there already
    again.export_for_dllm2rec(make_settings(**alone), logger)
    found = load_teacher_outputs(outputs, dataset, DistillConfig(name="dllm2rec", kd_weight=0), logger=logger)
    assert found.embeddings.shape == (24, 16)
    with pytest.raises(UserError, match=r"myrank_train.txt: missing file; .*teacher.export.rankings=false\): export"):
        load_teacher_outputs(outputs, dataset, DistillConfig(name="dllm2rec", top_k=4), logger=logger)


def test_the_files_of_each_step(make_teacher, make_settings, logger, tb_writer, tmp_path):
    settings, teacher = make_settings(), make_teacher()
    teacher.train(settings, logger, tb_writer)
    teacher.export_for_dllm2rec(settings, logger)
    teacher.evaluate(settings, logger)

    names = ("adapter_config.json", WEIGHTS_FILE)
    assert list(teacher.files("train")) == [f"models/teacher/adapter/{name}" for name in names]
    outputs = ("all_embeddings.pt", "myrank_train.txt", "confidence_train.txt", "row_stats.npz", MANIFEST_FILE)
    assert set(teacher.files("export")) == {str(tmp_path / "outputs" / name) for name in outputs}
    measured = ("eval_teacher.json", "ranks_teacher.npz", "teacher_examples.md")
    assert list(teacher.files("evaluate")) == [f"metrics/{name}" for name in measured]
    for step in ("train", "export", "evaluate"):
        for path, digest in teacher.files(step).items():
            assert sha256_file(teacher.folder.root / path) == digest  # an absolute path stays as it is
    again = make_teacher()
    again.export_for_dllm2rec(settings, logger)  # is there already
    assert again.files("export") == teacher.files("export")
