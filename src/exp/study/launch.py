"""Running a study's jobs through one of Hydra's launchers: here, in several processes, or on a cluster."""

from collections.abc import Sequence
from contextlib import chdir
from functools import partial

from hydra._internal.callbacks import Callbacks  # a launcher outside `hydra.main` has no other way to one
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from src.core.paths import RunFolder
from src.exp import run_distill, run_student_baseline
from src.exp.settings import parse_settings
from src.exp.stage.messages import one_line
from src.exp.stage.multirun import heed_lost_jobs, run_job

_RUNS = {"baseline": run_student_baseline.run, "distill": run_distill.run}


def launch(stage: str, jobs: Sequence[list[str]], folder: RunFolder) -> None:
    """Run jobs of one stage, each in its subfolder of the study's folder; an error in one does not end the others.

    Args:
        jobs: the overrides of each (`plan.job_overrides`).
    """
    if not jobs:
        return
    # Hydra notes the current folder as the one in which each job was called, and by now that is the study's own.
    with chdir(HydraConfig.get().runtime.cwd):
        _launcher(stage, folder).launch(list(jobs), initial_job_idx=0)


def _launcher(stage: str, folder: RunFolder) -> Launcher:
    """The launcher that `hydra/launcher=` of the study's command names."""
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    given = HydraConfig.get().overrides.hydra
    words = [word for word in given if word.lstrip("+").startswith(("hydra/launcher", "hydra.launcher."))]
    config = hydra.compose_config(
        config_name="config",
        overrides=[*words, "hydra/hydra_logging=none", f"hydra.sweep.dir={_quoted(str(folder.root))}"],
        run_mode=RunMode.MULTIRUN,
        with_log_configuration=False,
    )
    heed_lost_jobs(config)
    context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config))
    return Plugins.instance().instantiate_launcher(
        hydra_context=context, task_function=partial(run_study_job, stage), config=config
    )


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def run_study_job(stage: str, config: DictConfig) -> float | None:
    """One job, in whatever process the launcher has chosen."""
    run = _RUNS[stage]
    return run_job(lambda: run(parse_settings(config)), config, stage, one_line, wants_trace=False)
