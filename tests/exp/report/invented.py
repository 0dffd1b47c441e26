"""Invented ranks and an invented run, small enough to check by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import TINY_STUDENT, compose_config

from src.core.files import write_json
from src.core.metrics import metrics_from_ranks
from src.core.paths import RunFolder
from src.exp.compare.comparison import Comparison
from src.exp.settings import Settings, parse_settings

KS = [1, 5, 10, 20]


def ranks(better: list[int], users: list[int] | None = None, masked: list[int] | None = None) -> dict[str, np.ndarray]:
    """Ranks without ties of users 0, 1, ... with target 0; with the history removed, as `masked`, or all first."""
    users = users if users is not None else list(range(len(better)))
    ones, zeros = np.ones(len(better), int), np.zeros(len(better), int)
    columns = {
        "better": np.array(better),
        "equal": ones,
        "better_masked": zeros if masked is None else np.array(masked),
        "equal_masked": ones,
    }
    return {"user": np.array(users), "target": zeros, **columns}


def evaluation(run: dict[str, np.ndarray], seed: int = 1) -> dict[str, Any]:
    """The contents of an `eval_*.json`."""
    shown = metrics_from_ranks(run["better"], run["equal"], KS)
    masked = metrics_from_ranks(run["better_masked"], run["equal_masked"], KS)
    return {"metrics": shown, "metrics_masked": masked, "seed": seed}


def settings(experiment_name: str = "test", monitor: str = "recall@1", history: str = "shown") -> Settings:
    """Of a tiny run; the metric is the share of users whose target comes first."""
    found = parse_settings(compose_config(*TINY_STUDENT, f"metrics.monitor={monitor}", f"metrics.history={history}"))
    return replace(found, general=replace(found.general, experiment_name=experiment_name))


def comparison(folder: Path, dataset: Any, models: dict[str, dict[str, np.ndarray]], **changes: Any) -> Comparison:
    """A comparison of models by their ranks, all in one run folder, with the costs that a run would have recorded."""
    cost = {
        "parameters": 1000,
        "trained_parameters": 10,
        "latency_ms": 0.5,
        "latency_users": 2,
        "latency_device": "CPU",
    }
    students = [name for name in models if name in ("baseline", "distill")]
    run = RunFolder(folder)
    write_json(run.cost_file, dict.fromkeys(students, cost))
    evaluations = {name: evaluation(found) for name, found in models.items()}
    given = {
        "settings": settings(),
        "commit": "abc",
        "dataset": dataset,
        "device": torch.device("cpu"),
        "folder": run,
        "sources": dict.fromkeys(students, run),
        "evaluations": evaluations,
        "ranks": {name: [found] for name, found in models.items()},
        "seeds": {name: [evaluations[name]] for name in students},
    }
    return Comparison(**{**given, **changes})
