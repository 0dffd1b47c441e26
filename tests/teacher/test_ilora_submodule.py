"""iLoRA's own code as an implementation: what it leaves alone, what it refuses, and how weights move."""

import importlib
import logging
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from src.core.errors import UserError
from src.core.paths import RunFolder
from src.core.teacher_files import read_manifest
from src.student.cost import parameter_counts
from src.teacher.adapter.adapter_file import WEIGHTS_FILE
from src.teacher.adapter.ilora_submodule import SubmoduleLora, add_submodule_lora, code_digest, find_code, load_code
from src.teacher.adapter.implementation import add_adapter, choose_implementation, load_adapter
from src.teacher.adapter.moe_lora import GatedLora
from src.teacher.adapter.upstream_weights import from_adapter, read_checkpoint, to_adapter
from src.teacher.config import LoraSettings, TeacherConfig
from src.teacher.ilora_backend import ILoRATeacher
from src.teacher.llm.load import load_llm

CPU = torch.device("cpu")
REC_SIZE, SETTINGS = 8, LoraSettings(r=4, alpha=6, dropout=0.0, num_experts=2)
GATES = torch.tensor([[0.2, 0.8], [0.6, 0.4]])


@pytest.fixture
def submodule_lora(ilora_folder, llm_folder, lora) -> SubmoduleLora:
    """The same weights as `lora` has."""
    made = add_submodule_lora(load_llm(llm_folder, "float32", CPU)[1], SETTINGS, REC_SIZE)
    made.load_state(lora.state())
    made.model.eval()
    return made


def read_again(implementation: str, llm_folder: Path, adapter: Path, rec_size: int = REC_SIZE, dtype: str = "float32"):
    """A saved adapter on a fresh LM."""
    llm = load_llm(llm_folder, dtype, CPU)[1]
    return load_adapter(implementation, llm, folder=adapter, num_experts=SETTINGS.num_experts, rec_size=rec_size)


def start(llm_folder: Path, config: TeacherConfig, logger: logging.Logger):
    """A native adapter that is about to be trained."""
    llm = load_llm(llm_folder, "float32", CPU)[1]
    return add_adapter("native", llm, config=config, rec_size=REC_SIZE, logger=logger)


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


# --- nothing leaks ------------------------------------------------------------------------------------------


def test_loading_leaves_no_trace(ilora_folder, monkeypatch):
    """Nothing of upstream can be imported afterwards, a module of the same name stays, and `peft` is the stock one."""
    mine, files = ModuleType("model"), set(ilora_folder.rglob("*"))
    monkeypatch.setitem(sys.modules, "model", mine)
    path, written, modules = list(sys.path), sys.dont_write_bytecode, dict(sys.modules)

    code = load_code.__wrapped__(ilora_folder)  # not from the cache

    assert (sys.path, sys.dont_write_bytecode) == (path, written)
    assert sys.modules["model"] is mine
    assert not {m for m in sys.modules.keys() - modules.keys() if m.split(".")[0] in ("model", "peft")}
    assert importlib.import_module("peft") is peft and code.peft is not peft
    assert Path(code.peft.__file__).is_relative_to(ilora_folder)
    assert set(ilora_folder.rglob("*")) == files  # upstream tracks some bytecode, to which nothing may be added


# --- shims: without them ------------------------------------------------------------------------------------


def test_the_fork_wants_a_module_that_peft_no_longer_has():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("peft.utils.config")


def test_a_failing_layer_raises(submodule_lora):
    """Upstream prints the error and goes on with zeros."""
    ids = torch.ones(2, 3, dtype=torch.long)
    with submodule_lora.gated(torch.ones(2, 3)), pytest.raises(RuntimeError, match="in a MoE-LoRA layer of iLoRA: "):
        submodule_lora.llm(input_ids=ids)
    with pytest.raises(AttributeError, match="in a MoE-LoRA layer of iLoRA: "):
        submodule_lora.llm(input_ids=ids)  # outside `gated`


def test_every_trained_parameter_gets_a_gradient(submodule_lora):
    submodule_lora.model.train()
    users = torch.sin(torch.arange(2.0 * REC_SIZE)).reshape(2, REC_SIZE)
    gates = submodule_lora.router(users)
    embeds = submodule_lora.projector(users)[:, None].expand(-1, 4, -1)
    with submodule_lora.gated(gates):
        submodule_lora.llm(inputs_embeds=embeds).logits.square().mean().backward()
    trained = {name: p for name, p in submodule_lora.model.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None] == []
    grouped = [p for group in submodule_lora.parameter_groups(1.0, 0.0) for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in trained.values()}


# --- the interface ------------------------------------------------------------------------------------------


@torch.no_grad()
def test_without_adapter_it_is_the_base_model(submodule_lora, llm_folder):
    ids = torch.arange(6).reshape(2, 3)
    base = load_llm(llm_folder, "float32", CPU)[1]
    with submodule_lora.model.disable_adapter():
        assert torch.equal(submodule_lora.llm(input_ids=ids).logits, base(input_ids=ids).logits)
    with submodule_lora.gated(GATES):
        assert not torch.allclose(submodule_lora.llm(input_ids=ids).logits, base(input_ids=ids).logits)


def test_gradient_checkpointing_changes_no_gradient(ilora_folder, llm_folder, lora):
    gradients = []
    for checkpointing in (False, True):
        llm = load_llm(llm_folder, "float32", CPU)[1]
        if checkpointing:
            llm.gradient_checkpointing_enable({"use_reentrant": False})
        made = add_submodule_lora(llm, SETTINGS, REC_SIZE)
        made.load_state(lora.state())
        made.model.train()
        with made.gated(GATES):
            made.llm(input_ids=torch.arange(6).reshape(2, 3), use_cache=False).logits.square().mean().backward()
        gradients.append({n: p.grad for n, p in made.model.named_parameters() if p.grad is not None})
    assert gradients[0] and gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize("writer, reader", [("native", "submodule"), ("submodule", "native")])
def test_an_adapter_file_serves_both(submodule_lora, lora, llm_folder, config, tmp_path, writer, reader):
    lora.router.train()(torch.sin(torch.arange(16.0)).reshape(2, 8))  # moves the BatchNorm statistics
    submodule_lora.load_state(lora.state())
    made = {"native": lora, "submodule": submodule_lora}
    made[writer].save(tmp_path / "adapter")

    read = read_again(reader, llm_folder, tmp_path / "adapter")

    assert read.name == reader
    assert same(read.state(), lora.state())
    assert not read.model.training
    assert parameter_counts(read.model) == parameter_counts(made[reader].model)


def test_a_teacher_of_either_implementation(ilora_folder, make_settings, dataset, tmp_path, logger, tb_writer):
    """Trained and exported by the submodule; the native implementation exports the same from the run folder."""
    folder, rankings = RunFolder(tmp_path / "run"), []
    for engine in ("submodule", "native"):
        settings = make_settings(overwrite=True, engine=engine)
        teacher = ILoRATeacher(settings.teacher, dataset=dataset, folder=folder, device=CPU)
        if engine == "submodule":
            teacher.train(settings, logger, tb_writer)
            teacher = ILoRATeacher(settings.teacher, dataset=dataset, folder=folder, device=CPU)
        teacher.export_for_dllm2rec(settings, logger)
        assert read_manifest(tmp_path / "outputs").engine == engine
        rankings.append((tmp_path / "outputs" / "myrank_train.txt").read_text())
    assert rankings[0] == rankings[1]


# --- choosing -----------------------------------------------------------------------------------------------


@pytest.fixture
def nowhere(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("ILORA_DIR", str(tmp_path / "nothing"))


def test_without_the_code_auto_is_native(nowhere, logger, caplog):
    caplog.set_level(logging.INFO)
    assert choose_implementation("auto", logger) == "native"
    assert "teacher engine: native (teacher.engine=auto)" in caplog.text


def test_without_the_code_submodule_is_refused(nowhere, logger):
    with pytest.raises(UserError, match=r"teacher\.engine=submodule: .* not checked out; run `git submodule update"):
        choose_implementation("submodule", logger)


def test_with_the_code_auto_takes_it(ilora_folder, logger, caplog):
    assert [choose_implementation(wanted, logger) for wanted in ("auto", "submodule", "native")] == [
        "submodule",
        "submodule",
        "native",
    ]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_another_commit_warns(ilora_folder, logger, caplog, monkeypatch, tmp_path):
    copy = tmp_path / "ilora"
    shutil.copytree(ilora_folder / "model", copy / "model")
    (copy / "model" / "mlp_projector.py").write_text("# changed\n")
    monkeypatch.setenv("ILORA_DIR", str(copy))
    assert find_code() == copy and code_digest(copy) != code_digest(ilora_folder)
    assert choose_implementation("auto", logger) == "submodule"
    assert "not the code of AkaliKong/iLoRA@28e4737" in caplog.text


# --- weights (no checkout needed) ---------------------------------------------------------------------------


def upstream_checkpoint(lora: GatedLora, path: Path, **changes: torch.Tensor | None) -> Path:
    """As upstream's training saves: what has a gradient, per-layer gating included, no statistics."""
    state = {n: v for n, v in from_adapter(lora.state()).items() if "running_" not in n and "num_batches" not in n}
    layer = "llama_model.base_model.model.model.layers.0.mlp.up_proj"
    state[f"{layer}.gating.default.linear_layer.weight"] = torch.zeros(2, 64)
    state = {name: value for name, value in {**state, **changes}.items() if value is not None}
    torch.save({"state_dict": state, "epoch": 4, "hyper_parameters": {"lr": 1e-4}}, path)
    return path


def test_names_go_both_ways(lora):
    ours = lora.state()
    theirs = from_adapter(ours)
    assert len(theirs) == len(ours)
    assert same(to_adapter(theirs), ours)
    assert {
        "llama_model.base_model.model.model.layers.1.mlp.down_proj.lora_B.default.weight",
        "router.layer3.2.bn2.running_var",
        "router.gate.fc.bias",
        "projector.mlp_proj.2.weight",
    } <= theirs.keys()


def test_an_upstream_checkpoint_loads_with_a_warning(lora, make_lora, tmp_path, logger, caplog):
    path = upstream_checkpoint(lora, tmp_path / "last.ckpt")
    fresh = make_lora(ramp=False)

    fresh.load_state(read_checkpoint(path, fresh.state(), logger))

    assert "lacks the router's BatchNorm statistics" in caplog.text
    assert same(fresh.state(), lora.state())  # whose statistics have not moved


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"router.conv1.weight": torch.zeros(16, 1, 5)}, r"router\.conv\.weight holds \(16, 1, 5\), this model wants"),
        ({"router.conv1.weight": None}, r"router\.conv\.weight holds nothing, this model wants \(16, 1, 3\)"),
        ({"router.strange.weight": torch.zeros(1)}, r"strange\.weight: not a weight of iLoRA's router or projector"),
        (
            {f"projector.mlp_proj.{i}.{n}": None for i in (0, 2) for n in ("weight", "bias")},
            "has no projector; upstream",
        ),
    ],
)
def test_unfit_checkpoints_are_refused(lora, tmp_path, logger, changes, message):
    path = upstream_checkpoint(lora, tmp_path / "last.ckpt", **changes)
    with pytest.raises(UserError, match=message):
        read_checkpoint(path, lora.state(), logger)


def test_a_file_that_is_no_checkpoint_is_refused(lora, tmp_path, logger):
    (tmp_path / "text.ckpt").write_text("text")
    torch.save({"weights": {}}, tmp_path / "other.ckpt")
    for name, message in (
        ("text", "a damaged file, or not a file written by torch.save"),
        ("other", "not a checkpoint of iLoRA's training, which has a state_dict of tensors"),
        ("missing", "missing file"),
    ):
        with pytest.raises(UserError, match=rf"{name}\.ckpt: {message}"):
            read_checkpoint(tmp_path / f"{name}.ckpt", lora.state(), logger)


def test_training_can_start_from_a_checkpoint(lora, llm_folder, config, tmp_path, logger):
    given = replace(config, init_adapter=str(upstream_checkpoint(lora, tmp_path / "last.ckpt")))
    started = start(llm_folder, given, logger)
    assert same(started.state(), lora.state())


def test_an_adapter_of_another_base_model_is_refused(lora, build_llm, config, tmp_path):
    lora.save(tmp_path / "adapter")
    build_llm(config, tmp_path / "other", 8)
    with pytest.raises(
        UserError, match=r"an adapter of the base model llm \(.{12}\), this run's .* is other \(.{12}\)"
    ):
        read_again("native", tmp_path / "other", tmp_path / "adapter")


def test_an_adapter_of_other_settings_is_refused(lora, llm_folder, config, tmp_path, logger):
    lora.save(tmp_path / "adapter")
    with pytest.raises(
        UserError, match=r"adapter: .*projector\.inner\.weight holds \(16, 8\), this model wants \(16, 5\)"
    ):
        read_again("native", llm_folder, tmp_path / "adapter", rec_size=5)
    other = LoraSettings(r=2, alpha=6, num_experts=2)
    with pytest.raises(
        UserError, match=r"lora_A\.weight holds \(4, .*\), this model wants \(2, .*use the teacher\.lora"
    ):
        start(llm_folder, replace(config, init_adapter=str(tmp_path / "adapter"), lora=other), logger)


def test_an_adapter_of_another_scale_is_refused(lora, llm_folder, config, tmp_path, logger):
    lora.save(tmp_path / "adapter")
    trained = config.lora.alpha
    other = replace(config, init_adapter=str(tmp_path / "adapter"), lora=replace(config.lora, alpha=trained + 1))
    with pytest.raises(UserError, match=rf"teacher\.lora\.alpha={trained + 1}: .* with {trained}; set"):
        start(llm_folder, other, logger)


def test_the_base_model_is_recognised_in_any_dtype(lora, llm_folder, config, tmp_path):
    lora.save(tmp_path / "adapter")
    read = read_again("native", llm_folder, tmp_path / "adapter", dtype="bfloat16")
    assert same(read.state(), lora.state())


def test_a_file_of_stock_peft_is_read(lora, llm_folder, config, tmp_path):
    lora.save(tmp_path / "adapter")
    file = tmp_path / "adapter" / WEIGHTS_FILE
    save_file(load_file(file), file)  # drops the metadata
    read = read_again("native", llm_folder, tmp_path / "adapter")
    assert same(read.state(), lora.state())
