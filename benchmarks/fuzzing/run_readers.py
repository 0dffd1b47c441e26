"""Readers of what runs leave behind: records, metrics, checkpoints, states, configurations; of `recommend`'s input."""

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from benchmarks.fuzzing.data_readers import LOGGER
from benchmarks.fuzzing.reader import Reader
from src.core import git_info
from src.core.artefacts import Artefact, Owner, State, _holder
from src.core.data_utils import Rows, SequenceDataset
from src.core.files import LOCK_FILE, sha256_file, write_json
from src.core.logging import _read_times
from src.core.metrics import MetricsConfig
from src.core.paths import CONFIG_FILE, ITEMS_FILE, WEIGHTS_FILE, RunFolder
from src.distill.selection_log import read_selection
from src.exp.compare import provenance
from src.exp.compare.comparison import read_evaluation
from src.exp.compare.provenance import changed_settings, repeat_command
from src.exp.compare.significance import load_ranks, paired_tests
from src.exp.report.plots import plot_learning_curves
from src.exp.report.tables import read_costs, read_times
from src.exp.settings import RecommendConfig
from src.exp.study.results import reference_of, require_metric, result, run_table
from src.serving.answers import _answer_file
from src.serving.recommender import Recommender
from src.student.checkpoint import Catalogue, CheckpointInfo
from src.student.config import ModelConfig
from src.student.context import GeneratorState, Resume
from src.student.models import Student, build_model
from src.student.training import FitResult, _go_on

CPU = torch.device("cpu")
NUM_ITEMS = 12
_MODEL = ModelConfig("sasrec", NUM_ITEMS, 8, 8, 5, 0.0)
_FOLDER, _PROJECT = "run", Path(git_info.__file__).resolve().parents[2]


@cache
def dataset() -> SequenceDataset:
    """6 users who walk round a circle of 12 items, 6 items each; 18 training rows."""
    items = np.array([(user + place) % NUM_ITEMS for user in range(6) for place in range(6)], dtype=np.int32)

    def rows(places: list[int]) -> Rows:
        return Rows(items, np.arange(7) * 6, np.repeat(np.arange(6) * 6, len(places)) + np.tile(places, 6))

    names = [f"i{i}" for i in range(NUM_ITEMS)]
    titles = [f"Title {i}" for i in range(NUM_ITEMS)]
    return SequenceDataset("toy", NUM_ITEMS, 6, titles, names, 5, rows([1, 2, 3]), rows([4]), rows([5]), "f" * 64)


def student() -> Student:
    torch.manual_seed(0)
    return build_model(_MODEL)


# --- records, locks, times ----------------------------------------------------------------------------------

_INPUTS = {"general.seed": 1, "metrics.history": "shown", "the data set": "f" * 64, "student.filter_sizes": [2, 3]}


def _artefact(folder: Path) -> Artefact:
    return RunFolder(folder / _FOLDER).artefact("baseline")


def _make_record(folder: Path) -> None:
    artefact = _artefact(folder)
    artefact.begin(_INPUTS)
    write_json(folder / _FOLDER / "a.json", 1)
    artefact.complete(0.5, {"a.json": sha256_file(folder / _FOLDER / "a.json")})


def _read_record(folder: Path) -> Any:
    """None where its stage is to be run again."""
    status = _artefact(folder).status(_INPUTS, verify=True)
    return None if status.state is State.ABSENT else str(status)


def _make_lock(folder: Path) -> None:
    write_json(folder / LOCK_FILE, asdict(Owner(pid=1, host="host", since="2026-01-01T00:00:00.000+00:00")))


def _read_lock(folder: Path) -> Any:
    """None where it is just "another process"."""
    holder = _holder(folder)
    return str(holder) if isinstance(holder, Owner) else None


def _make_times(folder: Path) -> None:
    write_json(folder / "time.json", {"training": 1.5, "evaluation": 2})


def _read_times_to_add(folder: Path) -> Any:
    """None where they begin anew."""
    times = _read_times(folder / "time.json")
    return {name: round(value + 1.5, 3) for name, value in times.items()} or None


def _make_costs(folder: Path) -> None:
    _make_times(folder)
    cost = {"parameters": 10, "trained_parameters": 5, "latency_ms": 0.5, "latency_users": 3, "latency_device": "CPU"}
    write_json(folder / "cost.json", {"baseline": cost})


# --- metrics, tests, plots ----------------------------------------------------------------------------------

_EVALUATION = {
    **{"model": "sasrec", "dataset": "toy", "dataset_fingerprint": "f" * 64, "seed": 1, "num_users": 6},
    **{part: {"ndcg@10": 0.5, "recall@10": 1, "mrr": 0.25} for part in ("metrics", "metrics_masked")},
}


def _ranks(shift: int = 0) -> dict[str, np.ndarray]:
    numbers = (np.arange(6) + shift) % 4
    better = {name: numbers for name in ("better", "better_masked")}
    equal = {name: 1 + numbers % 2 for name in ("equal", "equal_masked")}
    return {"user": np.arange(6), "target": np.arange(6), **better, **equal}


def _make_ranks(folder: Path) -> None:
    np.savez_compressed(folder / "ranks.npz", **_ranks())


def _read_ranks(folder: Path) -> Any:
    runs = [load_ranks(folder / "ranks.npz")]
    return paired_tests({"a": (runs, [_ranks(1)])}, "ndcg@10", masked=True)


def _make_study(folder: Path) -> None:
    _make_record(folder)
    run = RunFolder(folder / _FOLDER)
    write_json(run.eval_file("baseline"), _EVALUATION)
    np.savez_compressed(run.ranks_file("baseline"), **_ranks())


def _read_study(folder: Path) -> Any:
    """None where the run is not finished."""
    found = result("baseline", RunFolder(folder / _FOLDER))
    if found is None:
        return None
    variants = {"one": [found], "other": [found]}
    require_metric(variants, MetricsConfig(ks=[10], monitor="ndcg@10"))
    return found.ranks, run_table(variants), [reference_of(name, variants) for name in variants]


def _make_history(folder: Path) -> None:
    frame = pd.DataFrame({"epoch": [1, 2], "loss": [2.5, 2], "loss_ce": [2.5, 2], "valid/ndcg@10": [0.1, 0.2]})
    frame.to_csv(folder / "history.csv", index=False)


def _read_history(folder: Path) -> Any:
    return plot_learning_curves({"baseline": folder / "history.csv"}, "ndcg@10", "NDCG@10")


def _make_selection(folder: Path) -> None:
    chosen = np.packbits(np.arange(18).reshape(1, -1) % 2 == 0, axis=1)
    np.savez_compressed(folder / "selection.npz", chosen=chosen, mean_weight=np.ones(18, dtype=np.float32))


# --- students -----------------------------------------------------------------------------------------------


_INFO = CheckpointInfo("toy", "f" * 64, 1, "abc", 3, "ndcg@10", 0.5)


def _make_checkpoint(folder: Path) -> None:
    _recommender().save_pretrained(folder)


def _read_checkpoint(folder: Path) -> Any:
    return Recommender.from_pretrained(folder).recommend([["i1", "i2"]], top_k=3)


def _components() -> dict[str, Any]:
    model = student()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.zeros(1, 5, dtype=torch.long), torch.ones(1, dtype=torch.long)).sum().backward()
    optimizer.step()
    return {"model": model, "optimizer": optimizer, "order": GeneratorState(torch.Generator())}


def _make_state(folder: Path) -> None:
    fit = FitResult(1, 0.5, [{"epoch": 1, "loss": 2.0, "valid/ndcg@10": 0.5}])
    Resume(folder / "last_state.pt").save({"step": 1, "result": asdict(fit)}, _components())


def _read_state(folder: Path) -> Any:
    resume, components = Resume(folder / "last_state.pt"), _components()
    steps, fit = resume.steps_done(), _go_on(resume, components, LOGGER)
    components["optimizer"].step()
    return steps + 1, len(fit.history), fit.best_value > 0


def _recommend(ending: str) -> Reader:
    name = f"histories.{ending}"

    def make(folder: Path) -> None:
        frame = pd.DataFrame({"user": ["a", "b"], "history": ["i1 i2", "i3"]})
        frame.to_parquet(folder / name) if ending == "parquet" else frame.to_csv(folder / name, index=False)

    def read(folder: Path) -> Any:
        asked = RecommendConfig(input=str(folder / name), output=str(folder / "answers.csv"), top_k=2)
        _answer_file(_recommender(), asked, LOGGER)
        return True

    return Reader(make, (name,), read)


@cache
def _recommender() -> Recommender:
    return Recommender(student(), _items(), _INFO)


def _items() -> Catalogue:
    return Catalogue(dataset().item_ids, dataset().titles)


# --- configurations and git ---------------------------------------------------------------------------------


def _make_snapshot(folder: Path) -> None:
    _with_hydra()
    composed = compose("config", overrides=["student=caser"], return_hydra_config=True)
    snapshot = folder / _FOLDER / ".hydra" / "baseline"
    snapshot.mkdir(parents=True)
    OmegaConf.save({"hydra": {"runtime": {"choices": composed.hydra.runtime.choices}}}, snapshot / "hydra.yaml")
    OmegaConf.save(compose("config", overrides=["student=caser"]), snapshot / "config.yaml")
    OmegaConf.save(["student=caser", "student.lr=0.1"], snapshot / "overrides.yaml")


def _with_hydra() -> None:
    if not GlobalHydra.instance().is_initialized():
        initialize_config_dir(str(_PROJECT / "conf"), version_base="1.3")


@cache
def _composed(name: str, overrides: tuple[str, ...], **options: bool) -> Any:
    return compose(name, overrides=list(overrides), **options)


_options = cache(provenance._options)


def _read_snapshot(folder: Path) -> Any:
    _with_hydra()
    # Our own configuration takes half a second each time.
    provenance.compose = lambda name, overrides=(), **options: _composed(name, tuple(overrides), **options)
    provenance._options = _options
    return changed_settings(RunFolder(folder / _FOLDER), "baseline")


def _read_overrides(folder: Path) -> Any:
    return repeat_command({"baseline": RunFolder(folder / _FOLDER)})


def _make_git(folder: Path) -> None:
    repository = folder / "repository"
    (repository / ".git" / "refs" / "heads").mkdir(parents=True)
    (repository / ".git" / "objects").mkdir()
    for name, text in {
        "HEAD": "ref: refs/heads/main\n",
        "config": "[core]\n\trepositoryformatversion = 0\n\tbare = false\n",
        "packed-refs": f"# pack-refs with: peeled fully-peeled sorted \n{'a' * 40} refs/heads/main\n",
        "refs/heads/keep": "",
        "objects/keep": "",
    }.items():
        (repository / ".git" / name).write_text(text)


def _read_git(folder: Path) -> Any:
    """None where the commit is not known."""
    before, git_info.PROJECT_ROOT = git_info.PROJECT_ROOT, folder / "repository"
    os.environ["GIT_CEILING_DIRECTORIES"] = str(folder)  # or another repository above might answer
    try:
        commit = git_info.save_git_info(folder)
    finally:
        git_info.PROJECT_ROOT = before
        shutil.rmtree(folder / "git_info.txt", ignore_errors=True)
    return None if commit == "unknown" else commit


def _of(make: Callable[[Path], None], read: Callable[[Path], Any], *files: str) -> Reader:
    return Reader(make, files, read)


_SNAPSHOT, _METRICS = f"{_FOLDER}/.hydra/baseline", f"{_FOLDER}/metrics"

READERS = {
    "record": _of(_make_record, _read_record, f"{_FOLDER}/records/baseline.json"),
    "lock": _of(_make_lock, _read_lock, LOCK_FILE),
    "time": _of(_make_times, _read_times_to_add, "time.json"),
    "report_times": _of(_make_times, lambda folder: read_times([folder / "time.json"]), "time.json"),
    "report_costs": _of(_make_costs, lambda folder: read_costs([folder / "cost.json"]), "cost.json"),
    "evaluation": _of(
        lambda folder: write_json(folder / "eval.json", _EVALUATION),
        lambda folder: read_evaluation(folder / "eval.json", "ndcg@10"),
        "eval.json",
    ),
    "ranks": _of(_make_ranks, _read_ranks, "ranks.npz"),
    "study_result": _of(
        _make_study,
        _read_study,
        f"{_METRICS}/eval_baseline.json",
        f"{_METRICS}/ranks_baseline.npz",
        f"{_FOLDER}/records/baseline.json",
    ),
    "history": _of(_make_history, _read_history, "history.csv"),
    "selection": _of(_make_selection, lambda folder: read_selection(folder / "selection.npz"), "selection.npz"),
    "checkpoint": _of(_make_checkpoint, _read_checkpoint, CONFIG_FILE, ITEMS_FILE, WEIGHTS_FILE),
    "resume": _of(_make_state, _read_state, "last_state.pt"),
    "recommend_csv": _recommend("csv"),
    "recommend_parquet": _recommend("parquet"),
    "snapshot": _of(_make_snapshot, _read_snapshot, f"{_SNAPSHOT}/config.yaml", f"{_SNAPSHOT}/hydra.yaml"),
    "overrides": _of(_make_snapshot, _read_overrides, f"{_SNAPSHOT}/overrides.yaml"),
    "git": _of(_make_git, _read_git, *(f"repository/.git/{name}" for name in ("HEAD", "config", "packed-refs"))),
}
