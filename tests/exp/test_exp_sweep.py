"""Sweeps: launchers, failures, going on after an interruption, and the table over seeds."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from harness import CONF, compose_config, places, run_here
from hydra.utils import instantiate
from matplotlib import image
from omegaconf import OmegaConf

from src.core.artefacts import Artefact
from src.core.errors import UserError
from src.core.paths import RunFolder
from src.exp import gather
from src.exp.stage.multirun import load_jobs, varying_keys
from src.exp.stage.stage import Step, run_stage

PRESETS = sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.glob("hydra/*/*.yaml"))
installed = pytest.mark.skipif(
    importlib.util.find_spec("hydra_plugins") is None, reason="needs `poetry install --with sweep`"
)


def _make_stage():
    """A stage that works elsewhere: as a closure it travels whole, and no other process has to import this file."""

    def unlucky_two(cfg) -> float:
        def work() -> float:
            if cfg.general.seed == 2:
                raise UserError("two is unlucky")
            return cfg.general.seed / 10

        def plan(stage) -> list[Step]:
            made_from = {"general.seed": cfg.general.seed, "student.lr": cfg.student.lr}
            return [Step(artefact=stage.folder.artefact("baseline"), made_from=lambda: made_from, work=work)]

        return run_stage(cfg, "baseline", plan)

    return unlucky_two


unlucky_two = _make_stage()


def error_lines(capfd) -> list[str]:
    return [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]


@pytest.fixture
def sweep(data_dir, tmp_path):
    """Run a sweep of a stage on the sample; returns its exit code."""

    def run(folder: Path, *overrides: str, run=unlucky_two) -> int:
        where = ("dataset=sample", "general.device=cpu", *places(data_dir, tmp_path / "results"))
        return run_here(run, f"hydra.sweep.dir={folder}", "-m", *where, *overrides, artefact="baseline")

    return run


@installed
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_composes_and_can_be_built(preset) -> None:
    group, name = preset.rsplit("/", 1)
    hydra = compose_config(f"{group}={name}", with_hydra=True).hydra
    built = instantiate(hydra[group.split("/")[1]])
    assert type(built).__module__.startswith("hydra_plugins.")


def test_a_missing_plugin_is_named_with_the_command_that_installs_it(sweep, tmp_path, capfd) -> None:
    assert sweep(tmp_path, "hydra/launcher=absent") == 1
    (error,) = error_lines(capfd)
    assert "hydra/launcher=absent: there is none of that name" in error and "bash cmd/install.sh installs it" in error


LAUNCHERS = [
    "basic",
    pytest.param("joblib", marks=installed),
    pytest.param("submitit_local", marks=installed),
]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_an_error_in_one_job_does_not_end_the_others(sweep, tmp_path, capfd, launcher) -> None:
    seeds = "general.seed=2,3"
    assert sweep(tmp_path / "sweep", f"hydra/launcher={launcher}", seeds) == 1
    (error,) = error_lines(capfd)
    assert error.startswith("error: 1 of 2 jobs failed: 0 (general.seed=2): two is unlucky; the same command with ")
    assert f"hydra.sweep.dir={tmp_path / 'sweep'} repeats only what is not finished" in error
    jobs = load_jobs(tmp_path / "sweep")
    assert [(job.record.value, job.error) for job in jobs] == [(None, "two is unlucky"), (0.3, None)]


def test_a_job_that_fails_before_its_stage_begins_is_named_too(sweep, tmp_path, capfd) -> None:
    assert sweep(tmp_path, "student.lr=0,1", "general.seed=1") == 1
    (error,) = error_lines(capfd)
    assert error.startswith("error: 1 of 2 jobs failed: 0 (student.lr=0): student.lr=0.0: must be a number > 0; ")
    assert sweep(tmp_path, "student.lr=2,1", "general.seed=1") == 0
    assert [job.error for job in load_jobs(tmp_path)] == [None, None]


def test_an_interrupted_sweep_goes_on_where_it_stopped(sweep, tmp_path, capfd) -> None:
    done: list[object] = []

    def killed(cfg) -> float:
        def work() -> float:
            if cfg.general.seed == 2 and len(done) == 1:
                raise KeyboardInterrupt
            done.append(cfg.general.seed)
            return float(cfg.general.seed)

        def plan(stage) -> list[Step]:
            artefact = stage.folder.artefact("baseline")
            return [Step(artefact=artefact, made_from=lambda: {"seed": cfg.general.seed}, work=work)]

        return run_stage(cfg, "baseline", plan)

    assert sweep(tmp_path, "general.seed=1,2,3", run=killed) == 130
    assert [job.error for job in load_jobs(tmp_path)] == [None, "it was interrupted"]
    done.append("again")
    assert sweep(tmp_path, "general.seed=1,2,3", run=killed) == 0
    assert done == [1, "again", 2, 3]
    assert f"stage baseline: skipped: complete and unchanged ({tmp_path / '0'})" in capfd.readouterr().err
    assert [job.record.value for job in load_jobs(tmp_path)] == [1, 2, 3]


def test_a_finished_job_with_other_settings_is_neither_taken_nor_replaced(sweep, tmp_path, capfd) -> None:
    assert sweep(tmp_path, "general.seed=1,3") == 0
    assert sweep(tmp_path, "general.seed=3,4", "student.lr=0.5") == 1
    (error,) = error_lines(capfd)
    assert error.startswith("error: 2 of 2 jobs failed: 0 (general.seed=1): ")
    assert "baseline is complete there, and general.seed changed from 1 to 3; student.lr changed from" in error
    assert [job.record.made_from["general.seed"] for job in load_jobs(tmp_path)] == [1, 3]
    assert sweep(tmp_path, "general.seed=1,3") == 0
    assert [job.error for job in load_jobs(tmp_path)] == [None, None]


@installed
def test_an_interrupted_search_tries_the_same_and_skips_what_is_finished(sweep, tmp_path) -> None:
    tried: list[float] = []

    def stage(cfg) -> float:
        def work() -> float:
            tried.append(cfg.student.dropout)
            return -abs(cfg.student.dropout - 0.2)

        def plan(stage) -> list[Step]:
            artefact = stage.folder.artefact("baseline")
            return [Step(artefact=artefact, made_from=lambda: {"student.dropout": cfg.student.dropout}, work=work)]

        return run_stage(cfg, "baseline", plan)

    search = ("hydra/sweeper=tune", "student.dropout=interval(0,0.5)")
    assert sweep(tmp_path, *search, "hydra.sweeper.n_trials=2", run=stage) == 0
    assert sweep(tmp_path, *search, "hydra.sweeper.n_trials=3", run=stage) == 0
    assert len(tried) == len(set(tried)) == 3
    assert [job.record.made_from["student.dropout"] for job in load_jobs(tmp_path)] == tried


@installed
def test_a_named_study_goes_on_with_other_trials(sweep, tmp_path, capfd) -> None:
    tried: list[float] = []

    def stage(cfg) -> float:
        tried.append(cfg.student.dropout)
        return -abs(tried[-1] - 0.2)

    study = ("hydra/sweeper=tune", "hydra.sweeper.study_name=lr", "student.dropout=interval(0,0.5)")
    for folder, trials in (("first", 3), ("second", 2)):
        assert sweep(tmp_path / folder, *study, f"hydra.sweeper.n_trials={trials}", run=stage) == 0

    file = tmp_path / "results" / "searches" / "lr.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["params"]["student.dropout"] for line in lines] == tried and len(set(tried)) == 5
    assert [line["value"] for line in lines] == [-abs(value - 0.2) for value in tried]
    best = OmegaConf.load(tmp_path / "second" / "optimization_results.yaml")
    assert best.best_value == max(line["value"] for line in lines)
    assert "study lr goes on after 3 trials" in capfd.readouterr().err

    (tmp_path / "first" / "0" / "records").mkdir(parents=True)
    assert sweep(tmp_path / "first", *study, run=stage) == 1
    (error,) = error_lines(capfd)
    assert f"first: holds jobs of an earlier start, whose 5 trials are known from {file}; leave hydra" in error
    file.write_text(file.read_text() + '{"value": 1}\n')
    assert sweep(tmp_path / "third", *study, run=stage) == 1
    (error,) = error_lines(capfd)
    assert f"{file}:6: no trial of a study" in error and len(tried) == 5


def test_the_lines_of_a_job_say_which_it_is(sweep, tmp_path, capfd) -> None:
    assert sweep(tmp_path, "general.seed=1,2") == 1
    lines = [
        line.split(None, 2)[2] for line in capfd.readouterr().err.splitlines() if " INFO " in line or " ERROR " in line
    ]
    jobs = [line for line in lines if line.startswith("job ")]
    assert "job 1: failed: two is unlucky" in jobs
    assert {line[:6] for line in jobs if "stage baseline in" in line} == {"job 0:", "job 1:"}
    logs = [RunFolder(tmp_path / str(job)).log_file("baseline").read_text() for job in (0, 1)]
    assert not any("job 0:" in log or "job 1:" in log for log in logs)


def finished(folder: Path, artefact: str, overrides: dict[str, str], **made_from: object) -> Artefact:
    """A complete job that was asked for with these overrides."""
    run = RunFolder(folder)
    made = run.artefact(artefact)
    made.begin({"general.seed": int(overrides["general.seed"]), "metrics.history": "shown", **made_from})
    snapshot = run.snapshot_dir(artefact)
    snapshot.mkdir(parents=True)
    (snapshot / "overrides.yaml").write_text("".join(f"- {key}={value}\n" for key, value in overrides.items()))
    made.complete(0.5 + int(overrides["general.seed"]) / 10)
    return made


def test_jobs_are_in_their_numerical_order_and_know_what_varies(tmp_path) -> None:
    for number in range(11):
        finished(tmp_path / str(number), "distill", {"dataset": "sample", "general.seed": str(number)})
    jobs = load_jobs(tmp_path)
    assert [job.folder.root.name for job in jobs] == [str(number) for number in range(11)]
    assert varying_keys(jobs) == ["general.seed"]


# --- gathering ----------------------------------------------------------------------------------------------


def finished_job(folder: Path, stage: str, overrides: dict[str, str], ranks: np.ndarray, **made_from: object) -> None:
    """A training whose test targets have these 0-based places, one per user; ndcg@1 is the share of zeros."""
    seed = int(overrides["general.seed"])
    finished(folder, stage, overrides, **made_from)
    (folder / "metrics").mkdir(exist_ok=True)
    counts = {"better": ranks, "equal": np.ones_like(ranks)}
    masked = {f"{name}_masked": values for name, values in counts.items()}
    columns = {"user": np.arange(len(ranks)), "target": 0 * ranks, **counts, **masked}
    np.savez(folder / "metrics" / f"ranks_{stage}.npz", **columns)
    metrics = {"ndcg@1": float((ranks == 0).mean())}
    about = {"dataset_fingerprint": "abc", "seed": seed, "metrics": metrics, "metrics_masked": metrics}
    pd.Series(about).to_json(folder / "metrics" / f"eval_{stage}.json")


@pytest.fixture
def finished_sweep(tmp_path) -> Path:
    """Baseline and distilled under two seeds, the distilled one with two weights; 40 users."""
    some, many = np.array([0] * 10 + [5] * 30), np.array([0] * 30 + [5] * 10)
    for job, seed in enumerate(("1", "2")):
        finished_job(tmp_path / str(job), "baseline", {"general.seed": seed}, some)
    jobs = (("0", "1", some), ("0", "2", some), ("1", "1", many), ("1", "2", many))
    for job, (weight, seed, ranks) in enumerate(jobs):
        overrides = {"distill.lambda": weight, "general.seed": seed}
        finished_job(tmp_path / str(job), "distill", overrides, ranks, **{"distill.lambda": weight})
    return tmp_path


def run_gather(folder: Path, *overrides: str, drawn: bool = False) -> int:
    where = (f"hydra.run.dir={folder.parent / 'run'}", "metrics.monitor=ndcg@1", "metrics.ks=[1]")
    return run_here(gather.run, f"gather.sweep_dir={folder}", *where, *overrides, drawn=drawn)


def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "sweep.csv", index_col="variant")


def test_a_sweep_becomes_a_table_over_seeds(finished_sweep, capsys) -> None:
    assert run_gather(finished_sweep, drawn=True) == 0
    found = table(finished_sweep)
    assert list(found.index) == ["baseline", "distill distill.lambda=0", "distill distill.lambda=1"]
    assert list(found["seeds"]) == [2, 2, 2] and list(found["mean"]) == [0.25, 0.25, 0.75]
    assert list(found["validation"]) == pytest.approx([0.65] * 3)  # of .6 and .7
    assert found.loc["distill distill.lambda=0", "verdict"] == "cannot tell"
    assert found.loc["distill distill.lambda=1", ["difference", "verdict"]].tolist() == [0.5, "better"]
    jobs = pd.read_csv(finished_sweep / "sweep_jobs.csv")
    assert list(jobs["seed"]) == [1, 2] * 3 and list(jobs["valid"]) == pytest.approx([0.6, 0.7] * 3)
    assert (finished_sweep / "sweep.md").read_text() in capsys.readouterr().out
    assert "distill.lambda=1" in (finished_sweep / "sweep.html").read_text()
    assert image.imread(finished_sweep / "sweep.png")[..., :3].std() > 0.01
    assert not (finished_sweep.parent / "run").exists()  # looking leaves no run folder behind


def test_a_sweep_names_what_is_not_finished(finished_sweep) -> None:
    finished(finished_sweep / "9", "distill", {"general.seed": "3"}).note_error("out of memory")
    assert run_gather(finished_sweep) == 0
    assert "job 9 (distill): out of memory" in (finished_sweep / "sweep.md").read_text()


def test_a_distilled_student_is_compared_with_the_baseline_that_fits_it_or_not_at_all(finished_sweep) -> None:
    """Of a sweep over the student's rate, too: each distilled student has its own baseline."""
    ranks = np.array([0] * 20 + [5] * 20)
    for number, (stage, lr) in enumerate((("baseline", "1"), ("baseline", "2"), ("distill", "2"), ("distill", "3"))):
        overrides = {"student.lr": lr, "general.seed": "7"}
        finished_job(finished_sweep / "lr" / str(number), stage, overrides, ranks, **{"student.lr": float(lr)})
    assert run_gather(finished_sweep / "lr") == 0
    found = table(finished_sweep / "lr")
    assert found.loc["distill student.lr=2", "difference"] == 0
    assert np.isnan(found.loc["distill student.lr=3", "difference"])
    assert found.loc["distill student.lr=3", "not comparable"] == "student.lr 1.0 / 3.0"


def test_variants_whose_best_epochs_were_chosen_by_another_ranking_are_not_compared(finished_sweep) -> None:
    ranks = np.array([0] * 20 + [5] * 20)
    for number, (stage, history) in enumerate((("baseline", "shown"), ("baseline", "removed"), ("distill", "removed"))):
        overrides = {"metrics.history": history, "general.seed": "7"}
        finished_job(finished_sweep / "two" / str(number), stage, overrides, ranks, **overrides | {"general.seed": 7})
    assert run_gather(finished_sweep / "two") == 0
    found = table(finished_sweep / "two")
    assert found.loc["baseline metrics.history=removed", "not comparable"] == "metrics.history shown / removed"
    assert found.loc["distill", "difference"] == 0  # to the baseline of its own history
    assert "test NDCG@1, history shown" in (finished_sweep / "two" / "sweep.md").read_text().replace("\\", "")


def test_variants_of_other_data_are_not_compared(finished_sweep) -> None:
    file = finished_sweep / "2" / "metrics" / "eval_distill.json"
    file.write_text(file.read_text().replace("abc", "other"))
    assert run_gather(finished_sweep) == 0
    assert table(finished_sweep).loc["distill distill.lambda=1", "not comparable"] == "the data set"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["metrics.monitor=ndcg@5", "metrics.ks=[5]"], "metrics.monitor=ndcg@5: not among the metrics of baseline"),
        (
            ["metrics.history=removed"],
            "metrics.history=removed: the best epochs were chosen with shown; give metrics.history=shown",
        ),
        (["gather.sweep_dir=nowhere"], "gather.sweep_dir=nowhere: holds no record of a job"),
    ],
)
def test_what_cannot_be_gathered_is_said(finished_sweep, capsys, overrides, message) -> None:
    assert run_gather(finished_sweep, *overrides) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {message}")


def test_a_sweep_without_a_training_is_said(tmp_path, capsys) -> None:
    finished(tmp_path / "0", "distill", {"general.seed": "3"}).note_error("out of memory")
    assert run_gather(tmp_path) == 1
    assert "none of its 1 jobs is a finished training" in capsys.readouterr().err
