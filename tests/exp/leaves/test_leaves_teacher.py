"""`conf/teacher`: every key of what is trained, the recommender, the tiny LLM and the adapter, trains another one."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import read, refusal
from huggingface_hub import constants
from leaves_bench import QUIET, Bench, Recorder, same
from leaves_table import Effect, cases, refused
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from src.core.artefacts import differing_keys
from src.core.teacher_files import read_manifest
from src.student.context import Resume
from src.teacher import ilora_backend
from src.teacher.scoring.answers import generate_answers


def _name(bench: Bench) -> None:
    assert refusal(lambda: bench.teacher("teacher.name=other")).startswith("teacher.name=other: must be one of")


def _llm_path(bench: Bench) -> None:
    """A folder of the ordinary layout is used as it is; anything else is refused, with what is expected."""
    llm, missing = bench.pipeline.folder / "models" / "teacher" / "llm", bench.tmp / "nothing"
    taught = bench.teach(f"teacher.llm_path={llm}", tiny=False)
    assert taught.losses and not taught.made("llm").exists()
    assert read_manifest(taught.export()).base_model == "llm"
    message = refusal(lambda: bench.teach(f"teacher.llm_path={missing}", tiny=False))
    assert message.startswith(f"teacher.llm_path={missing}: no such folder; expected a local Hugging Face folder")


def _hub(bench: Bench) -> Path:
    """A cache without network that holds two commits of a model, `old` and, as the main branch, `new`."""
    bench.patch.setattr(constants, "HF_HUB_CACHE", str(bench.tmp / "hub"))
    bench.patch.setattr(constants, "HF_HUB_OFFLINE", True)
    model = bench.tmp / "hub" / "models--acme--llama"
    for branch, commit in (("main", "a" * 40), ("old", "b" * 40)):
        shutil.copytree(bench.pipeline.folder / "models" / "teacher" / "llm", model / "snapshots" / commit)
        (model / "refs").mkdir(exist_ok=True)
        (model / "refs" / branch).write_text(commit)
    return model / "snapshots"


def _llm_path_of_hub(bench: Bench) -> None:
    snapshots = _hub(bench)
    chosen = ("teacher=ilora_small", "teacher.llm_path=acme/llama")
    assert bench.teacher(*chosen, tiny=False)[0].paths.llm == snapshots / ("a" * 40)
    message = refusal(lambda: bench.teacher("teacher=ilora_small", tiny=False))
    assert message.startswith("teacher.llm_path=HuggingFaceTB/SmolLM2-135M-Instruct: no folder of that name, the cache")


def _llm_revision(bench: Bench) -> None:
    snapshots = _hub(bench)
    for revision, commit in (("old", "b" * 40), ("b" * 40, "b" * 40), ("main", "a" * 40)):
        chosen = ("teacher.llm_path=acme/llama", f"teacher.llm_revision={revision}")
        assert bench.teacher(*chosen, tiny=False)[0].paths.llm == snapshots / commit
    message = refusal(lambda: bench.teacher("teacher.llm_revision=main"))
    assert message.startswith("teacher.llm_revision='main': must be null with teacher=ilora_tiny")


def _attn_implementation(bench: Bench) -> None:
    teachers = [bench.teach(f"teacher.attn_implementation={way}").teacher for way in ("eager", "sdpa")]
    assert [t._loaded().lm.lora.llm.config._attn_implementation for t in teachers] == ["eager", "sdpa"]


def _load_in_4bit(bench: Bench) -> None:
    message = refusal(lambda: bench.teacher("teacher.load_in_4bit=true"))
    assert message.startswith("teacher.load_in_4bit=true: needs a CUDA device")


def _engine(bench: Bench) -> None:
    """`submodule` is refused where iLoRA is not checked out; `auto` then takes ours."""
    bench.patch.setenv("ILORA_DIR", str(bench.tmp / "nothing"))
    assert refusal(lambda: bench.teacher("teacher.engine=submodule")).startswith("teacher.engine=submodule: ")
    assert bench.teacher("teacher.engine=auto")[0].engine == "native"


def _init_adapter(bench: Bench) -> None:
    """Training goes on from another adapter of the same base model."""
    llm = bench.pipeline.folder / "models" / "teacher" / "llm"
    first = bench.teach(f"teacher.llm_path={llm}", tiny=False)
    start = f"teacher.init_adapter={first.made('adapter')}"
    second = bench.teach(f"teacher.llm_path={llm}", start, tiny=False)
    assert second.losses[0] != first.losses[0]
    assert refusal(lambda: bench.teach(f"teacher.init_adapter={bench.tmp / 'nothing'}")).startswith(str(bench.tmp))


def _rec_model_path(bench: Bench) -> None:
    given = bench.teach().made("recommender")
    other = bench.teach(f"teacher.rec_model_path={given}", "general.seed=3")
    assert not other.made("recommender").exists()
    assert other.losses != bench.teach("general.seed=3").losses


def _steps(*overrides: str, expected: int) -> Effect:
    """16 rows in batches of 8 are 2 steps; with the overrides another number."""

    def effect(bench: Bench) -> None:
        assert (len(bench.teach().losses), len(bench.teach(*overrides).losses)) == (2, expected)

    return effect


def _other_teaching(*overrides: str) -> Effect:
    def effect(bench: Bench) -> None:
        assert bench.teach().losses != bench.teach(*overrides).losses

    return effect


def _questions(bench: Bench) -> None:
    """Training asks them, and whoever was asked others is another teacher."""
    usual, own = bench.teach(), bench.teach(
        "teacher.prompt.questions=['{history}; which {item_noun} of {candidates}?']"
    )
    assert usual.losses != own.losses
    used = own.teacher._loaded().builder.text(np.array([0]), np.array([1]), template=0, embed=False)
    assert used.endswith("?") and "; which item of " in used
    for step in ("train", "export", "evaluate"):
        one, other = (usual.teacher.made_from(step, taught.cfg) for taught in (usual, own))
        assert differing_keys(one, other)[0] == "teacher.prompt.questions"


def _open_question(bench: Bench) -> None:
    """It is asked where nothing is offered."""
    own = bench.teach("teacher.prompt.open_question='After {history} comes'")
    asked = own.teacher._loaded().builder.text(np.array([0]), np.array([], dtype=int), template=0, embed=False)
    assert asked.startswith("After ") and asked.endswith(" comes")


def _weight_decay(bench: Bench) -> None:
    assert not same(bench.teach().adapter, bench.teach("teacher.weight_decay=10").adapter)


def _max_eval_rows(bench: Bench) -> None:
    for number in (3, 5):
        taught = bench.teach(f"teacher.max_eval_rows={number}")
        taught.teacher.evaluate(taught.cfg, QUIET)
        assert read(taught.folder.eval_file("teacher"))["num_users"] == number


def _max_valid_rows(bench: Bench) -> None:
    answered: list[int] = []

    def answer(teacher, rows, index, *, seed):  # type: ignore[no-untyped-def]
        answered.append(len(index))
        return generate_answers(teacher, rows, index, seed=seed)

    bench.patch.setattr(ilora_backend, "generate_answers", answer)
    for number in (3, 5):
        bench.teach(f"teacher.max_valid_rows={number}", "teacher.num_epochs=2", fresh=True)
    assert answered == [3, 3, 5, 5]  # after each epoch


def _saved_steps(bench: Bench, *overrides: str) -> list[int]:
    """After which of 6 steps, 2 an epoch, the state of the training was saved."""
    steps: list[int] = []
    with bench.patch.context() as patch:
        patch.setattr(Resume, "save", lambda self, progress, components: steps.append(progress["step"]))
        bench.teach("teacher.num_epochs=3", *overrides, fresh=True)
    return steps


def _save_interval(bench: Bench) -> None:
    """Always after the last step, and before it after some epochs."""
    saved = [_saved_steps(bench, f"teacher.save_interval={interval}") for interval in (1, 2, 5)]
    assert saved == [[2, 4, 6], [4, 6], [6]]


def _save_steps(bench: Bench) -> None:
    assert _saved_steps(bench, "teacher.save_interval=5", "teacher.save_steps=4") == [4, 6]
    assert _saved_steps(bench, "teacher.save_interval=5", "teacher.save_steps=1") == [1, 2, 3, 4, 5, 6]


def _dtype(bench: Bench) -> None:
    full, half = bench.teach(), bench.teach("teacher.dtype=bfloat16")
    assert [t.teacher._loaded().lm.lora.llm.dtype for t in (full, half)] == [torch.float32, torch.bfloat16]
    assert full.losses != half.losses


def _gradient_checkpointing(bench: Bench) -> None:
    """The backward pass runs the layers again, and the numbers stay."""
    calls = [0]
    original = LlamaDecoderLayer.forward

    def forward(self, *args, **options):  # type: ignore[no-untyped-def]
        calls[0] += self.training
        return original(self, *args, **options)

    bench.patch.setattr(LlamaDecoderLayer, "forward", forward)
    counts, losses = [], []
    for value in ("false", "true"):
        calls[0] = 0
        losses.append(bench.teach(f"teacher.gradient_checkpointing={value}", fresh=True).losses)
        counts.append(calls[0])
    pretraining = 3  # layers, in one step
    assert counts[1] - pretraining == 2 * (counts[0] - pretraining) > 0
    assert losses[0] == pytest.approx(losses[1])


def _lora_r(bench: Bench) -> None:
    ranks = []
    for rank in (2, 4):
        adapter = bench.teach(f"teacher.lora.r={rank}").adapter
        ranks.append(next(t for name, t in adapter.items() if "lora_A" in name).shape[0])
    assert ranks == [2, 4]


def _num_experts(bench: Bench) -> None:
    gates = []
    for number in (2, 4):
        adapter = bench.teach(f"teacher.lora.num_experts={number}").adapter
        gates.append(next(t for name, t in adapter.items() if "gate.weight" in name).shape[0])
    assert gates == [2, 4]


def _other_recommender(*overrides: str) -> Effect:
    def effect(bench: Bench) -> None:
        assert not same(bench.teach().recommender, bench.teach(*overrides).recommender)

    return effect


def _epochs_of_recommender(bench: Bench, *overrides: str) -> int:
    """By the curve of its loss."""
    curves, original = Recorder(), ilora_backend.train_recommender

    def train(*args, context, **named):  # type: ignore[no-untyped-def]
        return original(*args, context=replace(context, writer=curves), **named)

    with bench.patch.context() as patch:
        patch.setattr(ilora_backend, "train_recommender", train)
        bench.teach(*overrides, fresh=True)
    return len(curves.values("loss_ce"))


def _recommender_epochs(bench: Bench) -> None:
    assert [_epochs_of_recommender(bench, f"teacher.recommender.num_epochs={n}") for n in (1, 3)] == [1, 3]


def _recommender_patience(bench: Bench) -> None:
    still = ("teacher.recommender.lr=1e-30", "teacher.recommender.num_epochs=6")  # never better than at first
    epochs = [_epochs_of_recommender(bench, *still, f"teacher.recommender.patience={n}") for n in (1, 3)]
    assert epochs == [2, 4]


def _llm_config(key: str, name: str, values: tuple[int, int]) -> Effect:
    def effect(bench: Bench) -> None:
        for value in values:
            assert bench.teach(f"teacher.tiny.{key}={value}").llm_config[name] == value

    return effect


def _vocab_size(bench: Bench) -> None:
    small, large = (bench.teach(f"teacher.tiny.vocab_size={n}").llm_config["vocab_size"] for n in (320, 400))
    assert small < large


def _other_llm(*overrides: str) -> Effect:
    def effect(bench: Bench) -> None:
        assert not same(bench.teach().llm, bench.teach(*overrides).llm)

    return effect


EFFECTS: dict[str, Effect] = {
    "teacher.name": _name,
    "teacher/ilora:teacher.llm_path": _llm_path,
    "teacher/ilora_tiny:teacher.llm_path": refused("teacher.llm_path=/x", "teacher.llm_path='/x': must be null"),
    "teacher/ilora_small:teacher.llm_path": _llm_path_of_hub,
    "teacher.llm_revision": _llm_revision,
    "teacher.attn_implementation": _attn_implementation,
    "teacher.load_in_4bit": _load_in_4bit,
    "teacher.engine": _engine,
    "teacher.init_adapter": _init_adapter,
    "teacher.rec_model_path": _rec_model_path,
    "teacher.batch_size": _steps("teacher.batch_size=4", expected=4),
    "teacher.micro_batch_size": _other_teaching("teacher.micro_batch_size=8"),
    "teacher.lr": _other_teaching("teacher.lr=1e-1"),
    "teacher.weight_decay": _weight_decay,
    "teacher.num_epochs": _steps("teacher.num_epochs=3", expected=6),
    "teacher.prompt_template": _other_teaching("teacher.prompt_template=movie"),
    "teacher.prompt.item_noun": _other_teaching("teacher.prompt.item_noun=song"),
    "teacher.prompt.item_noun_plural": _other_teaching("teacher.prompt.item_noun_plural=music"),
    "teacher.prompt.verb": _other_teaching("teacher.prompt.verb='listened to'"),
    "teacher.prompt.questions": _questions,
    "teacher.prompt.open_question": _open_question,
    "teacher.max_history": _other_teaching("teacher.max_history=1"),
    "teacher.num_candidates": _other_teaching("teacher.num_candidates=8"),
    "teacher.max_train_rows": _steps("teacher.max_train_rows=24", expected=3),
    "teacher.max_valid_rows": _max_valid_rows,
    "teacher.max_eval_rows": _max_eval_rows,
    "teacher.save_interval": _save_interval,
    "teacher.save_steps": _save_steps,
    "teacher.dtype": _dtype,
    "teacher.gradient_checkpointing": _gradient_checkpointing,
    "teacher.lora.r": _lora_r,
    "teacher.lora.alpha": _other_teaching("teacher.lora.alpha=320", "teacher.num_epochs=2"),
    "teacher.lora.dropout": _other_teaching("teacher.lora.dropout=0.9", "teacher.num_epochs=2"),
    "teacher.lora.num_experts": _num_experts,
    "teacher.recommender.name": refused(
        "teacher.recommender.name=other", "teacher.recommender.name='other': must be one of"
    ),
    "teacher.recommender.dropout": _other_recommender("teacher.recommender.dropout=0.9"),
    "teacher.recommender.norm": _other_recommender("teacher.recommender.norm=post"),
    "teacher.recommender.tied_output": _other_recommender("teacher.recommender.tied_output=false"),
    "teacher.recommender.batch_size": _other_recommender("teacher.recommender.batch_size=16"),
    "teacher.recommender.lr": _other_recommender("teacher.recommender.lr=1e-1"),
    "teacher.recommender.num_epochs": _recommender_epochs,
    "teacher.recommender.patience": _recommender_patience,
    "teacher.tiny.vocab_size": _vocab_size,
    "teacher.tiny.hidden_size": _llm_config("hidden_size", "hidden_size", (16, 24)),
    "teacher.tiny.num_layers": _llm_config("num_layers", "num_hidden_layers", (3, 4)),
    "teacher.tiny.num_heads": _llm_config("num_heads", "num_attention_heads", (2, 4)),
    "teacher.tiny.pretrain_steps": _other_llm("teacher.tiny.pretrain_steps=2"),
    "teacher.tiny.pretrain_batch_size": _other_llm("teacher.tiny.pretrain_batch_size=2"),
    "teacher.tiny.pretrain_lr": _other_llm("teacher.tiny.pretrain_lr=1e-1"),
}


@pytest.mark.parametrize(("file", "entry"), cases(EFFECTS), ids=str)
def test_a_leaf_does_something(bench, file, entry) -> None:
    bench.file = file
    EFFECTS[entry](bench)


def test_equal_settings_teach_equally(bench) -> None:
    """What is taken for an effect above must not be noise."""
    one, other = bench.teach(), bench.teach(fresh=True)
    assert one is not other and one.losses == other.losses
    assert same(one.adapter, other.adapter) and same(one.llm, other.llm)
    assert same(one.recommender, other.recommender)
