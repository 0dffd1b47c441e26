"""Runs that tell a tracker something."""

from collections.abc import Sequence
from pathlib import Path

from src.core.paths import RunFolder
from src.core.tracking.base import TrackedRun, TrackingConfig, tracking

CONFIG = "student:\n  lr: 0.5\n"
HPARAMS = {"student.lr": 0.5, "student.loss": "ce", "metrics.ks": [1, 5], "distill.embeddings_file": None}


def a_run(folder: Path, *, keep_until: int | None = None, name: str = "baseline") -> TrackedRun:
    return TrackedRun(folder=RunFolder(folder), name=name, config=CONFIG, hparams=HPARAMS, keep_until=keep_until)


def tell(
    settings: TrackingConfig,
    folder: Path,
    steps: Sequence[int],
    *,
    value: float = 0.0,
    keep_until: int | None = None,
    final: float | None = None,
) -> None:
    """A process that tells a point of `loss` and of `valid/ndcg@10` at each step, and at the end what its test gave."""
    with tracking(settings, a_run(folder, keep_until=keep_until)) as tracker:
        for step in steps:
            for tag in ("loss", "valid/ndcg@10"):
                tracker.add_scalar(tag, value, step)
        tracker.flush()
        if final is not None:
            tracker.conclude({"test/ndcg@10": final}, 2)
            card = folder / "README.md"
            card.write_text("# A card\n")
            tracker.add_files([card])
