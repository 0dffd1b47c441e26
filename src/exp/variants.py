"""Trainings that differ from a stage in some settings, each in a run folder of its own below the stage's."""

from collections.abc import Callable
from dataclasses import replace

from omegaconf import OmegaConf

from src.core.paths import RunFolder
from src.exp.run_student_baseline import train
from src.exp.settings import parse_settings
from src.exp.stage import Stage, compare, record_stage
from src.student.config import fit_window

ALL_SAMPLES = {"name": "all", "strategy": "all"}  # `active` of a training whose loss has no samples to choose


def variant(stage: Stage, name: str, where: str, seed: int, changes: dict) -> Stage:
    """The stage `name` (baseline or distill) with other settings, in `<where>/seed_<seed>` below this run folder.

    Args:
        changes: settings by group, such as {"distill": {"alpha": 0.0}}; an `active` with a strategy is a whole policy,
            whose keys replace those of the stage's policy.
    """
    open_cfg = OmegaConf.create(OmegaConf.to_container(stage.cfg))  # takes keys that only another choice of a group has
    if "strategy" in changes.get("active", {}):
        open_cfg.active = {}
    cfg = OmegaConf.merge(open_cfg, {"general": {"seed": seed}, **changes})
    settings = parse_settings(cfg)
    settings = replace(settings, student=fit_window(settings.student, stage.dataset.max_seq_len))
    folder = RunFolder(stage.folder.root / where / f"seed_{seed}")
    return replace(stage, name=name, cfg=cfg, settings=settings, folder=folder)


def trained_baseline(stage: Stage, where: str, seed: int) -> Stage:
    """The student alone, trained unless it is there."""
    return keep_or_run(variant(stage, "baseline", where, seed, {}), train, lambda job: {})


def keep_or_run(job: Stage, work: Callable[[Stage], float], files: Callable[[Stage], dict[str, str | None]]) -> Stage:
    """Run it unless its folder holds its result; an interrupted training goes on. Arguments as of `run_stage`.

    Raises:
        UserError: the folder holds a result of other settings, and `general.overwrite` is off.
    """
    where = job.folder.root.relative_to(job.folder.root.parents[2])
    if job.folder.is_finished(job.name):
        finished, _ = compare(job, files)
        if finished is not None:
            job.logger.info("%s: skipped: complete and unchanged", where)
            return job
    job.logger.info("%s", where)
    record_stage(job, work, files)
    return job
