"""`conf/hydra`: where jobs run, how a sweep ends, and what launchers and the sweeper are given."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import refusal, run_here
from hydra.core.hydra_config import HydraConfig
from leaves_bench import Bench
from leaves_table import Effect, cases
from omegaconf import OmegaConf

from src.core.errors import UserError

JOBLIB = "hydra_plugins.hydra_joblib_launcher"
SUBMITIT = "hydra_plugins.hydra_submitit_launcher"
OPTUNA = "hydra_plugins.hydra_optuna_sweeper"

# --- folders and the end of a sweep -------------------------------------------------------------------------


def _where(bench: Bench, *overrides: str) -> list[tuple[Path, Path]]:
    """Run folder and working folder of the jobs of a stage that does nothing."""
    seen: list[tuple[Path, Path]] = []

    def stage(cfg) -> None:  # type: ignore[no-untyped-def]
        seen.append((Path(HydraConfig.get().runtime.output_dir), Path.cwd()))

    assert run_here(stage, *overrides, f"paths.result_root={bench.tmp}") == 0
    return seen


def _run_dir(bench: Bench) -> None:
    assert _where(bench, f"hydra.run.dir={bench.tmp / 'mine'}")[0][0] == bench.tmp / "mine"
    assert _where(bench)[0][0].name.startswith("result_")


def _sweep_dir(bench: Bench) -> None:
    (job,) = _where(bench, "-m", f"hydra.sweep.dir={bench.tmp / 'mine'}")
    assert job[0] == bench.tmp / "mine" / "0"


def _sweep_subdir(bench: Bench) -> None:
    (job,) = _where(bench, "-m", f"hydra.sweep.dir={bench.tmp / 'mine'}", "hydra.sweep.subdir=job${hydra.job.num}")
    assert job[0] == bench.tmp / "mine" / "job0"


def _chdir(bench: Bench) -> None:
    ((folder, inside),) = _where(bench)
    ((_, outside),) = _where(bench, "hydra.job.chdir=false", f"hydra.run.dir={bench.tmp / 'other'}")
    assert inside == folder and outside == Path.cwd()


def _output_subdir(bench: Bench) -> None:
    """Without it a job that writes nothing leaves no folder."""
    assert not _where(bench)[0][0].exists()
    folder = _where(bench, "hydra.output_subdir=mine", f"hydra.run.dir={bench.tmp / 'other'}")[0][0]
    assert (folder / "mine" / "config.yaml").is_file()


def _refused_jobs(bench: Bench, *overrides: str) -> tuple[str, int]:
    """How a sweep ends whose jobs all fail, and how many jobs were tried."""
    tried: list[int] = []

    def stage(cfg) -> None:  # type: ignore[no-untyped-def]
        tried.append(cfg.general.seed)
        raise UserError("no luck")

    words = ("-m", f"hydra.sweep.dir={bench.folder()}", *overrides)
    message = refusal(lambda: run_here(stage, *words, full_error=True, artefact="baseline"))
    return message, len(tried)


def _sweep_callback(bench: Bench) -> None:
    seeds = "general.seed=1,2"
    assert _refused_jobs(bench, seeds)[0].startswith("2 of 2 jobs failed: 0 (general.seed=1), 1 (general.seed=2)")
    without = "hydra.callbacks.sweep._target_=hydra.experimental.callback.Callback"
    assert _refused_jobs(bench, seeds, without) == ("no luck", 2)


# --- launchers ----------------------------------------------------------------------------------------------


def _launcher(plugin: str, executor: str, key: str, value: int) -> Effect:
    """What the launcher hands to the program that starts the jobs, which is not started here."""

    def effect(bench: Bench) -> None:
        pytest.importorskip(plugin)
        seen: list[dict] = []

        class Executor:
            def __init__(self, *args, **parameters) -> None:  # type: ignore[no-untyped-def]
                seen.append(parameters)

            def update_parameters(self, **parameters) -> None:  # type: ignore[no-untyped-def]
                seen.append(parameters)

        module, _, name = executor.rpartition(".")
        bench.patch.setattr(importlib.import_module(module), name, Executor)
        for given in ([], [f"hydra.launcher.{key}={value}"]):
            choice = f"hydra/launcher={bench.file.split('/')[-1]}"
            assert run_here(lambda cfg: None, "-m", choice, f"hydra.sweep.dir={bench.folder()}", *given) == 1
        before, after = (parameters[key] for parameters in seen if key in parameters)
        assert before != after == value

    return effect


# --- the sweeper --------------------------------------------------------------------------------------------


def _tuned(bench: Bench, *overrides: str) -> list[float]:
    """The values that the Optuna sweeper tried for `student.dropout`, which is the value that it optimises."""
    pytest.importorskip(OPTUNA)
    tried: list[float] = []

    def stage(cfg) -> float:  # type: ignore[no-untyped-def]
        tried.append(cfg.student.dropout)
        return tried[-1]

    base = ("-m", "hydra/sweeper=tune", "student.dropout=interval(0,0.5)", f"hydra.sweep.dir={bench.folder()}")
    assert run_here(stage, *base, "hydra.sweeper.n_trials=2", *overrides) == 0
    return tried


def _direction(bench: Bench) -> None:
    for direction, best in (("maximize", max), ("minimize", min)):
        folder = bench.tmp / direction
        tried = _tuned(bench, f"hydra.sweeper.direction={direction}", f"hydra.sweep.dir={folder}")
        assert OmegaConf.load(folder / "optimization_results.yaml").best_value == best(tried)


def _n_trials(bench: Bench) -> None:
    assert [len(_tuned(bench, f"hydra.sweeper.n_trials={n}")) for n in (1, 2)] == [1, 2]


def _trials_at_a_time(bench: Bench) -> None:
    """The values of a batch of trials are all chosen before the result of any is known."""
    optuna = pytest.importorskip("optuna")
    events: list[str] = []

    def noting(name: str) -> Callable:
        method = getattr(optuna.Study, name)
        return lambda *args, **keys: events.append(name) or method(*args, **keys)

    for name in ("ask", "tell"):
        bench.patch.setattr(optuna.Study, name, noting(name))
    _tuned(bench)
    _tuned(bench, "hydra.sweeper.n_jobs=2")
    assert events == ["ask", "tell", "ask", "tell", "ask", "ask", "tell", "tell"]


def _max_failure_rate(bench: Bench) -> None:
    pytest.importorskip(OPTUNA)
    base = ("hydra/sweeper=tune", "hydra.sweeper.n_trials=2", "student.dropout=interval(0,0.5)")
    assert _refused_jobs(bench, *base)[1] == 2
    assert _refused_jobs(bench, *base, "hydra.sweeper.max_failure_rate=0.0")[1] == 1


def _sampler_seed(bench: Bench) -> None:
    assert _tuned(bench) == _tuned(bench) != _tuned(bench, "hydra.sweeper.sampler.seed=1")


def _kept_study(bench: Bench) -> None:
    """A named study is kept in a folder, and goes on with other trials; one without a name begins anew."""
    folder = bench.tmp / "searches"
    kept = ("hydra.sweeper.study_name=s", f"hydra.sweeper.storage.folder={folder}")
    first, second = (_tuned(bench, *kept) for _ in range(2))
    lines = [json.loads(line) for line in (folder / "s.jsonl").read_text().splitlines()]
    assert [line["params"]["student.dropout"] for line in lines] == [*first, *second]
    assert len({*first, *second}) == 4 and _tuned(bench) == first


def _storage_target(bench: Bench) -> None:
    assert _tuned(bench, "hydra.sweeper.storage=null") == _tuned(bench)


def _storage_of_study(bench: Bench) -> None:
    """What the storage reads of the sweep: under another name it keeps another file."""
    folder = bench.tmp / "others"
    given = (f"hydra.sweeper.storage.folder={folder}", "hydra.sweeper.storage.study_name=t")
    _tuned(bench, *given)
    assert [path.name for path in folder.iterdir()] == ["t.jsonl"]


def _storage_sweep_dir(bench: Bench) -> None:
    (bench.tmp / "before" / "0" / "records").mkdir(parents=True)
    given = ("hydra.sweeper.study_name=u", f"hydra.sweeper.storage.folder={bench.tmp / 'u'}")
    _tuned(bench, *given)
    words = ("-m", "hydra/sweeper=tune", "student.dropout=interval(0,0.5)", "hydra.sweeper.n_trials=1", *given)
    assert run_here(lambda cfg: 0.0, *words, f"hydra.sweeper.storage.sweep_dir={bench.tmp / 'before'}") == 1


EFFECTS: dict[str, Effect] = {
    "hydra.run.dir": _run_dir,
    "hydra.sweep.dir": _sweep_dir,
    "hydra.sweep.subdir": _sweep_subdir,
    "hydra.job.chdir": _chdir,
    "hydra.output_subdir": _output_subdir,
    "hydra.callbacks.sweep._target_": _sweep_callback,
    "hydra.launcher.n_jobs": _launcher(JOBLIB, f"{JOBLIB}._core.Parallel", "n_jobs", 3),
    "hydra.launcher.timeout_min": _launcher(SUBMITIT, "submitit.AutoExecutor", "timeout_min", 5),
    "hydra.launcher.gpus_per_node": _launcher(SUBMITIT, "submitit.AutoExecutor", "gpus_per_node", 2),
    "hydra.launcher.cpus_per_task": _launcher(SUBMITIT, "submitit.AutoExecutor", "cpus_per_task", 3),
    "hydra.launcher.mem_gb": _launcher(SUBMITIT, "submitit.AutoExecutor", "mem_gb", 7),
    "hydra.sweeper.direction": _direction,
    "hydra.sweeper.n_trials": _n_trials,
    "hydra.sweeper.n_jobs": _trials_at_a_time,
    "hydra.sweeper.max_failure_rate": _max_failure_rate,
    "hydra.sweeper.sampler.seed": _sampler_seed,
    "hydra.sweeper.study_name": _kept_study,
    "hydra.sweeper.storage.folder": _kept_study,
    "hydra.sweeper.storage._target_": _storage_target,
    "hydra.sweeper.storage.study_name": _storage_of_study,
    "hydra.sweeper.storage.sweep_dir": _storage_sweep_dir,
}


@pytest.mark.parametrize(("file", "entry"), cases(EFFECTS), ids=str)
def test_a_leaf_does_something(bench, file, entry) -> None:
    bench.file = file
    EFFECTS[entry](bench)
