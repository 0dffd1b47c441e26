"""`conf/distill`: every key of every preset distils another student."""

import shutil
from itertools import combinations

import numpy as np
import pytest
import torch
from harness import read
from leaves_bench import Bench, same
from leaves_table import LEAVES, Effect, cases, refused
from safetensors.torch import load_file

from src.distill import trainer_distill
from src.distill.config import TEACHERS
from src.distill.fusion import TeacherTable
from src.exp import distill_steps, run_distill, run_student_baseline

STILL = ("distill.lambda=0", "distill.ed_weight=0", "distill.num_epochs=1", "distill.lr=1e-30")
OFFICIAL = ("distill.candidate_loss=official", "distill.loss=bce_dros")


def _other_distillation(*overrides: str) -> Effect:
    """Other losses than with the defaults."""

    def effect(bench: Bench) -> None:
        assert bench.distil().losses != bench.distil(*overrides).losses

    return effect


def _confidence(bench: Bench) -> None:
    one, other = (bench.distil(f"distill.confidence=per_{name}") for name in ("candidate", "sequence"))
    assert one.losses != other.losses


def _dros_average(bench: Bench) -> None:
    """Where there is a DROS of candidates; elsewhere the value that upstream's would not have is refused."""
    batch, row = (bench.distil(*OFFICIAL, f"distill.dros_average={over}") for over in ("batch", "row"))
    assert batch.losses != row.losses
    refused("distill.dros_average=row", "distill.dros_average='row': must be batch with")(bench)


def _average_over(bench: Bench) -> None:
    """A share of the rows weighs more; all of them weigh the same."""
    for *chosen, alike in (["active=random", False], ["active=all", True]):
        batch, selected = (bench.distil(*chosen, f"distill.average_over={over}") for over in ("batch", "selected"))
        assert (batch.losses == selected.losses) is alike


def _teacher(bench: Bench) -> None:
    """Another teacher, another student; who else might teach is refused."""
    students = [
        load_file(
            bench.stage(run_distill.run, bench.choice, "distill.num_epochs=1", f"distill.teacher={teacher}")
            / "models"
            / "distill"
            / "model.safetensors"
        )
        for teacher in TEACHERS
    ]
    assert not any(same(one, other) for one, other in combinations(students, 2))
    refused("distill.teacher=oracle", "distill.teacher='oracle': must be one of files, recommender, random, tfidf,")(
        bench
    )


def _ranking(bench: Bench) -> None:
    """Rankings by the embeddings alone: the exported ones are not read, and the weight decides what is taught."""
    taught: list[torch.Tensor] = []
    original = distill_steps.train_distilled
    assert bench.pipeline  # made now where it was not yet, for it distils, too

    def keep(*args, distillation, **kwargs):  # type: ignore[no-untyped-def]
        taught.append(distillation.outputs.ranking)
        return original(*args, distillation=distillation, **kwargs)

    bench.patch.setattr(distill_steps, "train_distilled", keep)
    by_likeness = ("distill.num_epochs=1", "distill.ranking=similarity")
    for words in (("distill.num_epochs=1",), (*by_likeness, "distill.similarity_weight=0"), by_likeness):
        bench.stage(run_distill.run, bench.choice, *words)
    exported, chain, likeness = taught
    assert exported.shape == chain.shape == likeness.shape
    assert not torch.equal(exported, chain) and not torch.equal(chain, likeness)
    blended = ("distill.num_epochs=1", "distill.ranking=blend", "distill.teacher=recommender")
    bench.stage(run_distill.run, bench.choice, *blended)
    assert not torch.equal(taught[-1], chain)
    refused("distill.ranking=none", "distill.ranking='none': must be one of exported, similarity, blend")(bench)
    refused(
        "distill.ranking=blend", "distill.ranking='blend': must be exported or similarity with distill.teacher=files"
    )(bench)


def _similarity_weight(bench: Bench) -> None:
    refused("distill.similarity_weight=1", "distill.similarity_weight=1.0: must be null with distill.ranking=")(bench)


def _recommenders(bench: Bench) -> None:
    """Two teach otherwise than one; the record knows them by their weights, wherever they lie."""
    students = [bench.stage(run_student_baseline.run, bench.choice, f"general.seed={seed}") for seed in (3, 4)]
    folders = [folder / "models" / "baseline" for folder in students]
    shutil.copytree(folders[0], bench.tmp / "elsewhere")
    taught = [
        bench.stage(
            run_distill.run,
            bench.choice,
            "distill.num_epochs=1",
            "distill.teacher=recommender",
            f"distill.recommenders=[{','.join(map(str, chosen))}]",
        )
        for chosen in (folders, folders[:1], [bench.tmp / "elsewhere"])
    ]
    both, one, moved = (load_file(folder / "models" / "distill" / "model.safetensors") for folder in taught)
    assert same(one, moved) and not same(one, both)
    made_from = [read(folder / "records" / "distill.json")["made_from"] for folder in taught]
    assert made_from[1] == made_from[2] != made_from[0]
    missing = f"distill.recommenders=[{bench.tmp}/no]"
    message = bench.refused_stage(run_distill.run, bench.choice, "distill.teacher=recommender", missing)
    assert message.startswith("distill.recommenders=[") and f"there is no {bench.tmp}/no; give" in message
    refused("distill.recommenders=[x]", "distill.recommenders=['x']: must be [] with distill.teacher=files")(bench)


def _embeddings_file(bench: Bench) -> None:
    """Other embeddings, another student; the record knows them by their content, and a file that lacks is refused."""
    names, folders = ("one.npy", "other.npy", "one_again.npy"), []
    for name, seed in zip(names, (1, 2, 1), strict=True):
        np.save(bench.tmp / name, np.random.default_rng(seed).normal(size=(200, 6)).astype(np.float32))
        words = ("distill.num_epochs=1", "distill.lambda=0", f"distill.embeddings_file={bench.tmp / name}")
        folders.append(bench.stage(run_distill.run, bench.choice, *words))
    one, other, again = (load_file(folder / "models" / "distill" / "model.safetensors") for folder in folders)
    assert same(one, again) and not same(one, other)
    first, second, third = (read(folder / "records" / "distill.json")["made_from"] for folder in folders)
    assert first == third and first["the embeddings file"] != second["the embeddings file"]
    assert first["the teacher's files"] is None
    missing = f"distill.embeddings_file={bench.tmp}/no.pt"
    assert bench.refused_stage(run_distill.run, bench.choice, missing).startswith(missing)


def _teacher_table(bench: Bench) -> None:
    """Other rounding, and the table lies where the key says."""
    tables: list[TeacherTable] = []
    original = trainer_distill.TeacherTable

    def make(*args) -> TeacherTable:  # type: ignore[no-untyped-def]
        tables.append(original(*args))
        return tables[-1]

    bench.patch.setattr(trainer_distill, "TeacherTable", make)
    kinds = ("float32", "bfloat16", "cpu")
    full, half, _ = (bench.distil(f"distill.teacher_table={kind}", fresh=True) for kind in kinds)
    assert full.losses != half.losses
    assert [table.embeddings.dtype for table in tables] == [torch.float32, torch.bfloat16, torch.float32]
    assert TeacherTable(tables[0].embeddings, "cpu", torch.device("meta")).embeddings.device.type == "cpu"
    assert TeacherTable(tables[0].embeddings, "float32", torch.device("meta")).embeddings.device.type == "meta"


def _engine(bench: Bench) -> None:
    """The other engine is the original program, which is not there, or fixes what this run sets otherwise."""
    assert "distill.engine=submodule" in bench.refused_stage(run_distill.run, bench.choice, "distill.engine=submodule")


def _num_epochs(bench: Bench) -> None:
    assert [len(bench.distil(f"distill.num_epochs={n}").losses) for n in (1, 3)] == [1, 3]


def _started(bench: Bench, *overrides: str) -> torch.Tensor:
    """The output layer after a training that changes nothing."""
    folder = bench.stage(run_distill.run, bench.choice, *STILL, *overrides)
    return load_file(folder / "models" / "distill" / "model.safetensors")["output.weight"]


def _dims(bench: Bench) -> None:
    some, more = (bench.distil("distill.embedding_transform=whiten", f"distill.embedding_dims={n}") for n in (2, 4))
    assert some.losses != more.losses


def _init(bench: Bench) -> None:
    baseline = load_file(bench.pipeline.folder / "models" / "baseline" / "model.safetensors")["output.weight"]
    assert torch.allclose(_started(bench, "distill.init=baseline"), baseline)
    assert not torch.allclose(_started(bench, "distill.init=scratch"), baseline)


def _init_checkpoint(bench: Bench) -> None:
    other = bench.stage(run_student_baseline.run, "general.seed=9") / "models" / "baseline"
    started = _started(bench, "distill.init=baseline", f"distill.init_checkpoint={other}")
    assert torch.allclose(started, load_file(other / "model.safetensors")["output.weight"])


EFFECTS: dict[str, Effect] = {
    "distill.name": refused("distill.name=other", "distill.name='other': must be"),
    "distill.engine": _engine,
    "distill.teacher": _teacher,
    "distill.recommenders": _recommenders,
    "distill.embeddings_file": _embeddings_file,
    "distill.teacher_table": _teacher_table,
    "distill.ranking": _ranking,
    "distill.similarity_weight": _similarity_weight,
    "distill.alpha": _other_distillation("distill.alpha=2"),
    "distill.ed_weight": _other_distillation("distill.ed_weight=2"),
    "distill.lambda": _other_distillation("distill.lambda=2"),
    "distill.batch_size": _other_distillation("distill.batch_size=32"),
    "distill.lr": _other_distillation("distill.lr=1e-2"),
    "distill.num_epochs": _num_epochs,
    "distill.top_k": _other_distillation("distill.top_k=2"),
    "distill.gamma_position": _other_distillation("distill.gamma_position=3"),
    "distill.gamma_confidence": _other_distillation("distill.gamma_confidence=3"),
    "distill.gamma_consistency": _other_distillation("distill.gamma_consistency=3"),
    "distill.loss": _other_distillation("distill.loss=bce"),
    "distill/dllm2rec_paper:distill.loss": _other_distillation("distill.loss=ce"),
    "distill.candidate_loss": _other_distillation("distill.candidate_loss=softmax"),
    "distill.dros_average": _dros_average,
    "distill.average_over": _average_over,
    "distill.confidence": _confidence,
    "distill.confidence_temperature": _other_distillation("distill.confidence_temperature=0.1"),
    "distill.embedding": _other_distillation("distill.embedding=align"),
    "distill.embedding_transform": _other_distillation(
        "distill.embedding_transform=whiten", "distill.embedding_dims=4"
    ),
    "distill.embedding_dims": _dims,
    "distill.init": _init,
    "distill.init_checkpoint": _init_checkpoint,
}


@pytest.mark.parametrize(("file", "entry"), cases(EFFECTS), ids=str)
def test_a_leaf_does_something(bench, file, entry) -> None:
    bench.file = file
    EFFECTS[entry](bench)


@pytest.mark.parametrize("file", sorted({leaf.file for leaf in LEAVES if leaf.group == "distill"}))
def test_equal_settings_distil_equally(bench, file) -> None:
    """What is taken for an effect above must not be noise."""
    bench.file = file
    assert bench.distil().losses == bench.distil(fresh=True).losses
