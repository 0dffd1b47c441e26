"""The steps of `run_teacher`: train, export, evaluate.

Under `accelerate launch` the main process runs the stage, the others help with training and export.
"""

import atexit
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from src.core.artefacts import Artefact, locked
from src.core.errors import UserError
from src.core.logging import forget_times, record_times_in, silent_logger, start_logging, take_times, time_block
from src.core.paths import RunFolder, teacher_outputs_dir
from src.core.seed import set_seed
from src.core.settings import flat_settings
from src.core.teacher_files import ChosenRows, read_manifest
from src.core.tracking.base import BEST_TAG, Untracked
from src.distill.row_selection import select_rows
from src.exp.report.card import write_adapter_card, write_export_card
from src.exp.settings import Settings
from src.exp.stage.lookup import baseline_folder
from src.exp.stage.stage import Stage, Step, look, run_folder, run_stage
from src.exp.stage.training import tracked, training
from src.student.checkpoint import load_checkpoint_of
from src.teacher import processes
from src.teacher.adapter.adapter_file import WEIGHTS_FILE as ADAPTER_WEIGHTS
from src.teacher.factory import build_teacher
from src.teacher.interfaces import ITeacherRecommender
from src.teacher.provenance import ADAPTER
from src.teacher.scoring.export import require_free_export

TRAIN_TIME, EXPORT_TIME = "teacher_train_time_total", "distill_teacher_export_time"  # in metrics/time.json
_CHOOSER_KEY = "teacher.export.student_checkpoint"
_TRAIN, _EXPORT, _NOTHING = "train", "export", ""  # what the main process asks the others to help with


def run_steps(cfg: Settings) -> float:
    on_cpu = cfg.general.device == "cpu" or not torch.cuda.is_available()
    team = processes.state(torch.device("cpu" if on_cpu else "cuda"))
    _require_one_folder()
    value = _lead(cfg) if team.is_main_process else _assist(cfg)
    # A connection that is left to the interpreter's end now and then aborts the process, after all of its work.
    atexit.register(team.destroy_process_group)
    return value


def _lead(cfg: Settings) -> float:
    value = run_stage(cfg, "teacher", plan) if cfg.teacher.export.part is None else _run_part(cfg)
    processes.broadcast(_NOTHING)
    return value


def _run_part(cfg: Settings) -> float:
    """One of several independent jobs that share an export: the first trains, all rank, each its part of the rows.

    They need nothing but the run folder in common. Its lock is held while the adapter is looked for and trained; the
    ranking writes only shards there, and the time it took beside them.
    """
    trained: list[tuple[Stage, ITeacherRecommender]] = []

    def train_alone(stage: Stage) -> list[Step]:
        trained.append((stage, _build(stage)))
        return _steps(*trained[0])[:1]

    with locked(run_folder().root, notify=start_logging(cfg.logging).warning):
        value = run_stage(cfg, "teacher", train_alone)
    stage, teacher = trained[0]
    if _export_artefact(stage.folder, teacher_outputs_dir(cfg)).status(teacher.made_from("export", cfg)).is_current:
        stage.logger.info("the export is complete: no part of it is missing")
        return value
    processes.broadcast(_EXPORT)
    number, parts = cfg.teacher.export.part_of
    record_times_in(stage.folder.time_file.with_name(f"time_part_{number}_of_{parts}.json"))
    with time_block(EXPORT_TIME) as add_time:
        teacher.on_shard = add_time
        teacher.export_for_dllm2rec(cfg, stage.logger)
    return value


def _require_one_folder() -> None:
    folders = processes.gather([str(run_folder().root)])
    if len(set(folders)) > 1:
        raise UserError(
            f"hydra.run.dir={folders[0]}, in another process {folders[-1]}: give all processes one folder, "
            "hydra.run.dir=result/<a name>"
        )


def plan(stage: Stage) -> list[Step]:
    """Train, export, evaluate; refused here is what could not be trained or exported."""
    return _steps(stage, _build(stage))


def _steps(stage: Stage, teacher: ITeacherRecommender) -> list[Step]:
    cfg, folder, target = stage.settings, stage.folder, teacher_outputs_dir(stage.settings)
    require_free_export(target, _may_replace(stage), _adapter(folder))
    train = Step(
        artefact=folder.artefact("teacher"),
        made_from=lambda: teacher.made_from("train", cfg),
        work=lambda: _train(stage, teacher),
        files=lambda: _trained_files(folder, teacher),
        underway=tuple(flat_settings(cfg.teacher, "teacher", ["underway"])),
        forget=lambda: _forget(folder),
    )
    export = Step(
        artefact=_export_artefact(folder, target),
        made_from=lambda: teacher.made_from("export", cfg),
        work=lambda: _export(stage, teacher),
        files=lambda: {Path(name).name: digest for name, digest in teacher.files("export").items()},
    )
    evaluate = Step(
        artefact=folder.artefact("teacher_evaluation"),
        made_from=lambda: teacher.made_from("evaluate", cfg),
        work=lambda: teacher.evaluate(cfg, stage.logger),
        files=lambda: teacher.files("evaluate"),
    )
    return [train, export, evaluate]


def _export_artefact(folder: RunFolder, target: Path) -> Artefact:
    """The export lies outside the run folder, and may be moved or replaced there."""
    return replace(folder.artefact("teacher_export"), base=target)


def _adapter(folder: RunFolder) -> Path:
    return folder.model_dir("teacher") / "adapter" / ADAPTER_WEIGHTS


def _trained_files(folder: RunFolder, teacher: ITeacherRecommender) -> dict[str, str]:
    """Of the trained adapter; the state that an interrupted training would go on from is needed no more."""
    folder.last_state_file("teacher").unlink(missing_ok=True)
    return teacher.files("train")


def _forget(folder: RunFolder) -> None:
    folder.last_state_file("teacher").unlink(missing_ok=True)
    folder.eval_file("teacher").unlink(missing_ok=True)


def _may_replace(stage: Stage) -> bool:
    """Whether the export in the output folder may go: told so, or this run's teacher made it in an earlier training."""
    if stage.settings.general.overwrite:
        return True
    target = teacher_outputs_dir(stage.settings)
    record, manifest = _export_artefact(stage.folder, target).status().record, read_manifest(target)
    return record is not None and manifest is not None and manifest.adapter_sha256 == record.made_from.get(ADAPTER)


def _build(stage: Stage) -> ITeacherRecommender:
    return build_teacher(
        stage.settings,
        dataset=stage.dataset,
        folder=stage.folder,
        device=stage.device,
        rows=_rows_to_export(stage),
    )


def _train(stage: Stage, teacher: ITeacherRecommender) -> float:
    processes.broadcast(_TRAIN)
    with tracked(stage) as tracker:
        with training(stage, TRAIN_TIME, tracker) as context:
            assert context.resume is not None
            teacher.on_save = context.resume.on_save
            value = teacher.train(stage.settings, stage.logger, tracker)
        tracker.conclude({f"{BEST_TAG}validation": value}, 0)
        if _adapter(stage.folder).is_file():
            tracker.add_files([write_adapter_card(stage, teacher.base_model, teacher.base_model_license)])
    return value


def _export(stage: Stage, teacher: ITeacherRecommender) -> None:
    cfg = stage.settings
    processes.broadcast(_EXPORT)
    take_times(stage.folder.time_file.parent.glob("time_part_*.json"))
    if not (stage.folder.model_dir("teacher") / "shards").is_dir():  # a killed export leaves them
        forget_times(EXPORT_TIME)
    with time_block(EXPORT_TIME) as add_time:
        teacher.on_shard = add_time
        teacher.export_for_dllm2rec(
            replace(cfg, general=replace(cfg.general, overwrite=_may_replace(stage))), stage.logger
        )
    write_export_card(stage)


def _assist(cfg: Settings) -> float:
    """The share of a process beside the main one; it writes nothing but its part of the export."""
    stage, value = look(cfg, "teacher", logger=silent_logger()), 0.0
    set_seed(cfg.general.seed)
    teacher = _build(stage)
    while task := processes.receive():
        if task == _TRAIN:
            value = teacher.train(cfg, stage.logger, Untracked())
        else:
            teacher.export_for_dllm2rec(cfg, stage.logger)
    return value


def _rows_to_export(stage: Stage) -> ChosenRows | None:
    """The rows that are ranked, told before anything costly; None: all, or none where no rankings are wanted."""
    export, num_rows = stage.settings.teacher.export, len(stage.dataset.train)
    chosen = _rows_of_policy(stage) if export.rows == "policy" and export.rankings else None
    every = np.arange(num_rows) if chosen is None else chosen.index
    if not export.rankings or export.max_rows is None or export.max_rows >= len(every):
        return chosen
    drawn = np.random.default_rng(stage.settings.general.seed).choice(every, export.max_rows, replace=False)
    how = f"{chosen.how}, of them " if chosen else ""
    return ChosenRows(np.sort(drawn), f"{how}{export.max_rows} at random")


def _rows_of_policy(stage: Stage) -> ChosenRows:
    """What `active` chooses from the baseline alone.

    Raises:
        UserError: no finished baseline, or a policy that leaves nothing out or needs the teacher.
    """
    cfg = stage.settings
    if cfg.active.strategy == "all":
        raise UserError(
            "teacher.export.rows=policy: active=all leaves no row out; use active=random, coverage or uncertainty"
        )
    chooser = baseline_folder(stage, _CHOOSER_KEY, cfg.teacher.export.student_checkpoint)
    model = load_checkpoint_of(chooser, stage.dataset, _CHOOSER_KEY)
    rows = select_rows(cfg.active, model, stage.dataset, seed=cfg.general.seed, device=stage.device)
    how = cfg.active.description
    stage.logger.info("asking for %d of %d rows: %s", len(rows), len(stage.dataset.train), how)
    return ChosenRows(rows, how)
