"""Train the teacher, evaluate it, and export its knowledge for the student.

Under `accelerate launch` the main process runs the stage, the others help with training and export.
"""

from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import DictConfig

from src.core.errors import UserError
from src.core.files import sha256_file
from src.core.logging import LoggingConfig, forget_times, silent_logger, tensorboard_writer, time_block
from src.core.paths import RunFolder, project_path, teacher_outputs_dir
from src.core.seed import set_seed
from src.core.teacher_files import ChosenRows, find_damage, read_manifest
from src.distill.row_selection import select_rows
from src.exp.lookup import baseline_folder
from src.exp.record import CHOICE_OF_ROWS, weights_hash
from src.exp.stage import Stage, begin_stage, look_at_stage, run_entry_point, run_folder, run_stage
from src.student.checkpoint import load_checkpoint_of
from src.teacher import processes
from src.teacher.adapter.adapter_file import WEIGHTS_FILE as ADAPTER_WEIGHTS
from src.teacher.factory import build_teacher
from src.teacher.interfaces import ITeacherRecommender, Settings
from src.teacher.scoring.export import require_free_export

_STUDENT_KEY = "teacher.export.student_checkpoint"
_TRAIN_TIME, _EXPORT_TIME = "teacher_train_time_total", "distill_teacher_export_time"
_TRAIN, _EXPORT = "train and export", "export"  # what the main process tells the others to help with


def run(cfg: DictConfig) -> float:
    on_cpu = cfg.general.device == "cpu" or not torch.cuda.is_available()
    team, begun = processes.state(torch.device("cpu" if on_cpu else "cuda")), []
    folders = processes.gather([str(run_folder().root)])
    if len(set(folders)) > 1:
        raise UserError(
            f"hydra.run.dir={folders[0]}, in another process {folders[-1]}: give all processes one folder, "
            "hydra.run.dir=result/<a name>"
        )
    if not team.is_main_process:
        task = processes.receive()
        return _assist(cfg, task) if task else 0.0

    def work(stage: Stage) -> float:
        begun.append(stage)
        return _teach(stage)

    value = run_stage(cfg, "teacher", work, _files)
    if not begun and not _export_is_there(teacher_outputs_dir(cfg), _adapter(run_folder())):
        _export_again(cfg)
    elif not begun:
        processes.broadcast("")
    return value


def _assist(cfg: DictConfig, task: str) -> float:
    """The share of a process beside the main one; it writes nothing but its part of the export."""
    stage = look_at_stage(cfg, "teacher", silent_logger())
    set_seed(stage.settings.general.seed)
    teacher, settings = _teacher_of(stage), stage.settings
    value = 0.0
    if task == _TRAIN:
        silent = tensorboard_writer(stage.folder.tensorboard_dir("teacher"), LoggingConfig(tensorboard=False))
        value = teacher.train(settings, stage.logger, silent)
    teacher.export_for_dllm2rec(settings, stage.logger)
    return value


def _files(stage: Stage) -> dict[str, str | None]:
    """Only what is small: a LLaMA is known by its path."""
    teacher = stage.settings.teacher
    recommender, adapter = (p and project_path(p) for p in (teacher.rec_model_path, teacher.init_adapter))
    files = {
        "the frozen recommender": weights_hash(recommender),
        "the initial adapter": weights_hash(adapter, ADAPTER_WEIGHTS),
    }
    if teacher.export.rows == "policy":
        files[f"{CHOICE_OF_ROWS}the student"] = weights_hash(_choosing_student(stage))
        files[f"{CHOICE_OF_ROWS}active"] = str(stage.settings.active)
    return files


def _teach(stage: Stage) -> float:
    """Train, unless that is done already, export and evaluate."""
    teacher, settings = _build(stage), stage.settings
    target, adapter = teacher_outputs_dir(settings), _adapter(stage.folder)
    if _is_of_adapter(target, adapter):  # which the training replaces
        settings = replace(settings, general=replace(settings.general, overwrite=True))
    value = stage.replace_result()
    if value is None or not adapter.is_file():
        processes.broadcast(_TRAIN)
        value = _train(stage, teacher)
    else:
        stage.logger.info("the adapter is trained: %s", adapter.parent.parent)
        processes.broadcast(_EXPORT)
    _export(stage, teacher, settings)
    teacher.evaluate(settings, stage.logger)
    return value


def _train(stage: Stage, teacher: ITeacherRecommender) -> float:
    time_file, writer = stage.folder.time_file, stage.tensorboard
    if not stage.folder.last_state_file("teacher").is_file():
        forget_times(time_file, _TRAIN_TIME)
    with time_block(_TRAIN_TIME, time_file) as add_time:
        teacher.on_save = add_time
        value = teacher.train(stage.settings, stage.logger, writer)
    writer.close()
    stage.keep_trained(value)
    return value


def _export(stage: Stage, teacher: ITeacherRecommender, settings: Settings) -> None:
    if not (stage.folder.model_dir("teacher") / "shards").is_dir():  # a killed export leaves them
        forget_times(stage.folder.time_file, _EXPORT_TIME)
    with time_block(_EXPORT_TIME, stage.folder.time_file) as add_time:
        teacher.on_shard = add_time
        teacher.export_for_dllm2rec(settings, stage.logger)


def _export_again(cfg: DictConfig) -> None:
    """Export from the finished adapter: the files lie outside the run folder and may have been moved or replaced."""
    stage = begin_stage(cfg, "teacher")
    teacher = _build(stage)
    stage.logger.info("%s: does not hold this teacher's export: exporting again", teacher_outputs_dir(cfg))
    processes.broadcast(_EXPORT)
    _export(stage, teacher, stage.settings)


def _build(stage: Stage) -> ITeacherRecommender:
    """The teacher; refused at once, not after hours, where it could not write its export."""
    target, overwrite = teacher_outputs_dir(stage.settings), stage.settings.general.overwrite
    require_free_export(target, overwrite, _adapter(stage.folder))
    return _teacher_of(stage)


def _teacher_of(stage: Stage) -> ITeacherRecommender:
    rows = _rows_to_export(stage)
    return build_teacher(stage.settings, dataset=stage.dataset, folder=stage.folder, device=stage.device, rows=rows)


def _adapter(folder: RunFolder) -> Path:
    return folder.model_dir("teacher") / "adapter" / ADAPTER_WEIGHTS


def _is_of_adapter(target: Path, adapter: Path) -> bool:
    """Whether the folder holds what this adapter has exported."""
    manifest = read_manifest(target) if adapter.is_file() else None
    return manifest is not None and manifest.adapter_sha256 == sha256_file(adapter)


def _export_is_there(target: Path, adapter: Path) -> bool:
    """Whether the folder holds, whole, what this adapter has exported."""
    manifest = read_manifest(target)
    return manifest is not None and _is_of_adapter(target, adapter) and find_damage(target, manifest) is None


def _rows_to_export(stage: Stage) -> ChosenRows | None:
    """What `active` chooses from the baseline alone, before anything costly; None: all rows.

    Raises:
        UserError: no finished baseline, or a policy that leaves nothing out or needs the teacher.
    """
    active, export = stage.settings.active, stage.settings.teacher.export
    if export.rows == "all":
        return None
    if active.strategy == "all":
        raise UserError("teacher.export.rows=policy: active=all leaves no row out; use active=random or uncertainty")
    model = load_checkpoint_of(_choosing_student(stage), stage.dataset, _STUDENT_KEY)
    rows = select_rows(active, model, stage.dataset, stage.settings.general.seed, stage.device)
    measure = f" by {active.measure}" if active.measure else ""
    stage.logger.info("asking for %d of %d rows: %s%s", len(rows), len(stage.dataset.train), active.strategy, measure)
    return ChosenRows(rows, f"{active.strategy}{measure}, budget_ratio {active.budget_ratio:g}")


def _choosing_student(stage: Stage) -> Path:
    return baseline_folder(stage, _STUDENT_KEY, stage.settings.teacher.export.student_checkpoint)


def main() -> None:
    run_entry_point(run)


if __name__ == "__main__":
    main()
