"""`conf/student`: every key of every student trains another one."""

from pathlib import Path

import pytest
import torch
from leaves_bench import Bench
from leaves_table import LEAVES, Effect, cases, refused

from src.student import objectives
from src.student.context import Resume


def _other_training(*overrides: str) -> Effect:
    """Other losses than with the defaults."""

    def effect(bench: Bench) -> None:
        assert bench.train().losses != bench.train(*overrides).losses

    return effect


def _two_trainings(one: str, other: str) -> Effect:
    """Other losses with one value than with the other, whichever is the file's."""

    def effect(bench: Bench) -> None:
        assert bench.train(one).losses != bench.train(other).losses

    return effect


def _other_training_than(common: str, change: str) -> Effect:
    """Other losses than with what the leaf belongs to."""

    def effect(bench: Bench) -> None:
        assert bench.train(common).losses != bench.train(common, change).losses

    return effect


def _other_shapes(key: str) -> Effect:
    def effect(bench: Bench) -> None:
        small, large = bench.train(f"{key}=4"), bench.train(f"{key}=12")
        assert small.shapes != large.shapes
        assert [t.description["model"][key.split(".")[1]] for t in (small, large)] == [4, 12]

    return effect


def _max_seq_len(bench: Bench) -> None:
    short, long = bench.train("student.max_seq_len=4"), bench.train("student.max_seq_len=10")
    assert (short.description["model"]["max_seq_len"], long.description["model"]["max_seq_len"]) == (4, 10)
    assert short.losses != long.losses


def _num_epochs(bench: Bench) -> None:
    assert [len(bench.train(f"student.num_epochs={n}").losses) for n in (1, 3)] == [1, 3]


def _patience(bench: Bench) -> None:
    still = ("student.lr=1e-30", "student.num_epochs=6")  # never better than in the first epoch
    assert [len(bench.train(*still, f"student.patience={n}").losses) for n in (1, 3)] == [2, 4]


def _save_interval(bench: Bench) -> None:
    """With a learning rate that improves nothing: each epoch, or the first (the best) and the last."""
    saves: list[Path] = []
    bench.patch.setattr(Resume, "save", lambda self, progress, components: saves.append(self.file))
    counts = []
    for interval in (1, 9):
        saves.clear()
        bench.train("student.num_epochs=4", "student.lr=1e-30", f"student.save_interval={interval}", fresh=True)
        counts.append(len(saves))
    assert counts == [4, 2]


def _loss_chunk(bench: Bench) -> None:
    """Of `ce`: the rows whose scores are held at a time, of batches of 64; the losses are the same ones."""
    sizes: list[int] = []
    scores_of = objectives._chunk_of_scores

    def counted(hidden: torch.Tensor, *layer: torch.Tensor) -> torch.Tensor:
        sizes.append(len(hidden))
        return scores_of(hidden, *layer)

    bench.patch.setattr(objectives, "_chunk_of_scores", counted)
    common = ["student.loss=ce", "student.batch_size=64"]
    if bench.file != "student/caser":
        common.append("student.batching=rows")
    small = bench.train(*common, "student.loss_chunk=10", fresh=True)
    assert set(sizes) == {10, 4, 8}  # 64 and, of 200 rows, a last batch of 8
    sizes.clear()
    large = bench.train(*common, fresh=True)
    assert set(sizes) == {64, 8}
    assert small.losses == pytest.approx(large.losses, rel=1e-2)


def _max_valid_rows(bench: Bench) -> None:
    sampled, whole = (bench.train(f"student.max_valid_rows={rows}") for rows in (3, "null"))
    assert sampled.losses == whole.losses  # it is no training row
    assert sampled.result.best_value != whole.result.best_value
    assert " (a fixed sample of 3 of " in sampled.description["info"]["monitor"]
    assert "sample" not in whole.description["info"]["monitor"]


EFFECTS: dict[str, Effect] = {
    "student.name": refused("student.name=other", "student.name='other': must be one of"),
    "student.emb_size": _other_shapes("student.emb_size"),
    "student.hidden_size": _other_shapes("student.hidden_size"),
    "student.max_seq_len": _max_seq_len,
    "student.dropout": _other_training("student.dropout=0.5"),
    "student.batch_size": _other_training("student.batch_size=32"),
    "student.lr": _other_training("student.lr=1e-2"),
    "student.lr_schedule": _other_training("student.lr_schedule=linear"),
    "student.num_epochs": _num_epochs,
    "student.weight_decay": _other_training("student.weight_decay=0.1"),
    "student.grad_clip": _other_training("student.grad_clip=1e-4"),
    "student.patience": _patience,
    "student.loss": _other_training("student.loss=bce"),
    "student.dros_weight": _other_training_than("student.loss=bce_dros", "student.dros_weight=0.2"),
    "student.dros_beta": _other_training_than("student.loss=bce_dros", "student.dros_beta=0.5"),
    "student.num_negatives": _other_training_than("student.loss=sampled_softmax", "student.num_negatives=8"),
    "student.negatives": _other_training_than("student.loss=sampled_softmax", "student.negatives=popular"),
    "student.num_blocks": _other_training("student.num_blocks=3"),
    "student.num_heads": _other_training("student.num_heads=4"),
    "student.norm": _other_training("student.norm=post"),
    "student.scores": _other_training("student.scores=cosine"),
    "student.temperature": _other_training_than("student.scores=cosine", "student.temperature=0.1"),
    "student.tied_output": _two_trainings("student.tied_output=true", "student.tied_output=false"),
    "student.batching": _two_trainings("student.batching=packed", "student.batching=rows"),
    "student.mixed_precision": _other_training("student.mixed_precision=true"),
    "student.loss_chunk": _loss_chunk,
    "student.max_valid_rows": _max_valid_rows,
    "student.save_interval": _save_interval,
    "student.num_filters": _other_shapes("student.num_filters"),
    "student.filter_sizes": _other_training("student.filter_sizes=[2,5]"),
}


@pytest.mark.parametrize(("file", "entry"), cases(EFFECTS), ids=str)
def test_a_leaf_does_something(bench, file, entry) -> None:
    bench.file = file
    EFFECTS[entry](bench)


@pytest.mark.parametrize("file", sorted({leaf.file for leaf in LEAVES if leaf.group == "student"}))
def test_equal_settings_train_equally(bench, file) -> None:
    """What is taken for an effect above must not be noise."""
    bench.file = file
    assert bench.train().losses == bench.train(fresh=True).losses
