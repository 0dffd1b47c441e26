"""`conf/teacher`, `export`: every key writes other files for the student."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from leaves_bench import Bench, same
from leaves_table import Effect, cases
from safetensors.torch import load_file

from src.core.paths import RunFolder
from src.core.teacher_files import read_manifest
from src.exp import run_distill, run_teacher
from src.teacher.adapter.prompted_lm import PromptedLM


def _rankings(bench: Bench, *overrides: str) -> np.ndarray:
    return np.loadtxt(bench.teach(*overrides).export() / "myrank_train.txt")


def _method(bench: Bench) -> None:
    chosen = [f"teacher.export.method={method}" for method in ("likelihood", "generate")]
    assert [read_manifest(bench.teach(one).export()).method for one in chosen] == ["likelihood", "generate"]
    likelihood, generated = (_rankings(bench, one) for one in chosen)
    assert likelihood.shape == generated.shape and (likelihood != generated).any()


def _top_n(bench: Bench) -> None:
    for number in (2, 5):
        assert _rankings(bench, f"teacher.export.top_n={number}").shape == (40, number)


def _confidence(bench: Bench) -> None:
    scaled, raw = (
        np.loadtxt(bench.teach(f"teacher.export.confidence={kind}").export() / "confidence_train.txt")
        for kind in ("minmax", "raw")
    )
    assert (scaled[:, 0] == 0).all() and (raw[:, 0] > 0).all()


def _candidates(bench: Bench) -> None:
    chosen = [f"teacher.export.candidates={kind}" for kind in ("retrieval", "sampled")]
    manifests = [read_manifest(bench.teach(one).export()) for one in chosen]
    assert [(m.candidates, m.leaks_target) for m in manifests] == [("retrieval", False), ("sampled", True)]
    retrieved, sampled = (_rankings(bench, one) for one in chosen)
    assert (retrieved != sampled).any()


def _batch_tokens(bench: Bench) -> None:
    calls: list[int] = []
    original = PromptedLM.candidate_log_probs

    def counted(self, batch, gates, answers):  # type: ignore[no-untyped-def]
        calls.append(len(answers))
        return original(self, batch, gates, answers)

    bench.patch.setattr(PromptedLM, "candidate_log_probs", counted)
    for tokens, expected in ((100_000, [40]), (1, [1] * 40)):
        taught = bench.teach(f"teacher.export.batch_tokens={tokens}")
        calls.clear()  # the validation after the training asks for probabilities, too
        taught.export()
        assert calls == expected


_WORDING = "teacher.export.embedding_text='a film: {title} , as it is'"  # a title alone is one token
CHOSEN = ("active=random", "active.budget_ratio=0.1", "teacher.export.rows=policy")


def _rows(bench: Bench) -> None:
    """The trained teacher is asked for fewer rows, which the distillation knows; of a whole export it takes them."""
    outputs = bench.tmp / "outputs"
    there = f"paths.teacher_outputs_dir={outputs}"
    trained = shutil.copytree(bench.pipeline.folder, bench.folder())
    bench.stage(run_teacher.run, *CHOSEN, there, "general.overwrite=true", folder=trained)
    manifest = read_manifest(outputs)
    assert (manifest.num_rows, manifest.selection) == (60, "random")
    rows = np.load(outputs / "rows_train.npy")
    assert len(rows) == 60 == len(np.loadtxt(outputs / "myrank_train.txt"))
    folder = RunFolder(bench.stage(run_distill.run, *CHOSEN, there))
    log = folder.log_file("distill").read_text()
    assert "the teacher was asked for 60 of 600 training rows" in log
    assert "chosen before the export (random): distilling all of them" in log
    selected = pd.read_csv(folder.history_file("distill"))["selected"].tolist()
    assert selected == pytest.approx([0.1, 0.1], abs=0.02)  # a mean over batches, of which the last is short
    whole = RunFolder(bench.stage(run_distill.run, *CHOSEN))
    assert "as if the teacher had been asked for 60 of 600 rows" in whole.log_file("distill").read_text()
    assert same(*(load_file(run.model_dir("distill") / "model.safetensors") for run in (folder, whole)))


def _student_checkpoint(bench: Bench) -> None:
    chosen = (*CHOSEN, "general.overwrite=true")
    message = bench.refused_stage(run_teacher.run, *chosen, f"teacher.export.student_checkpoint={bench.tmp}")
    assert message.startswith(f"{bench.tmp / 'config.json'}: missing file")


def _max_rows(bench: Bench) -> None:
    """So many of all rows, or of those that the policy chooses."""
    outputs = bench.tmp / "outputs"
    trained = shutil.copytree(bench.pipeline.folder, bench.folder())
    found = []
    for chosen in ([], list(CHOSEN)):
        words = (*chosen, "teacher.export.max_rows=7", f"paths.teacher_outputs_dir={outputs}", "general.overwrite=true")
        bench.stage(run_teacher.run, *words, folder=trained)
        found.append(read_manifest(outputs).selection)
        rows = np.load(outputs / "rows_train.npy")
        assert len(rows) == 7 == len(np.loadtxt(outputs / "myrank_train.txt")) and (np.diff(rows) > 0).all()
    assert found == ["7 at random", "random, of them 7 at random"]


def _part(bench: Bench) -> None:
    taught = bench.teach("teacher.export.part=0/2")
    outputs = taught.export()
    assert not (outputs / "manifest.json").exists()
    assert len(list(taught.teacher.paths.shards.glob("*/00000.npz"))) == 1


def _rankings_key(bench: Bench) -> None:
    alone = bench.teach("teacher.export.rankings=false").export()
    assert not (alone / "myrank_train.txt").exists() and read_manifest(alone).num_rows == 0


def _embeddings(key: str, value: str, *beside: str) -> Effect:
    """Other embeddings, of which the manifest says how they were made."""

    def effect(bench: Bench) -> None:
        folders = [bench.teach(*beside, *words).export() for words in ([], [f"teacher.export.{key}='{value}'"])]
        one, other = (torch.load(folder / "all_embeddings.pt") for folder in folders)
        assert one.shape == other.shape and not torch.allclose(one, other, atol=1e-3)
        assert [str(getattr(read_manifest(folder), key)) == value for folder in folders] == [False, True]

    return effect


def _layer(bench: Bench) -> None:
    one, other = (bench.teach(f"teacher.export.embedding_layer={layer}").export() for layer in (-1, 1))
    assert [read_manifest(folder).embedding_layer for folder in (one, other)] == [-1, 1]
    assert not torch.allclose(*(torch.load(folder / "all_embeddings.pt") for folder in (one, other)), atol=1e-3)


EFFECTS: dict[str, Effect] = {
    "teacher.export.method": _method,
    "teacher.export.top_n": _top_n,
    "teacher.export.confidence": _confidence,
    "teacher.export.candidates": _candidates,
    "teacher.export.batch_tokens": _batch_tokens,
    "teacher.export.rows": _rows,
    "teacher.export.student_checkpoint": _student_checkpoint,
    "teacher.export.max_rows": _max_rows,
    "teacher.export.part": _part,
    "teacher.export.rankings": _rankings_key,
    "teacher.export.embedding_pooling": _embeddings("embedding_pooling", "mean", _WORDING),
    "teacher.export.embedding_layer": _layer,
    "teacher.export.embedding_text": _embeddings("embedding_text", "a film: {title} , as it is"),
}


@pytest.mark.parametrize(("file", "entry"), cases(EFFECTS), ids=str)
def test_a_leaf_does_something(bench, file, entry) -> None:
    bench.file = file
    EFFECTS[entry](bench)
