"""Train the teacher, evaluate it, and export its knowledge for the student.

Under `accelerate launch` the main process runs the stage, the others help with training and export.
"""

from pathlib import Path

import torch
from omegaconf import DictConfig

from src.core.errors import UserError
from src.core.logging import (
    LoggingConfig,
    forget_times,
    record_times_in,
    silent_logger,
    tensorboard_writer,
    time_block,
)
from src.core.paths import project_path, teacher_outputs_dir
from src.core.seed import set_seed
from src.core.teacher_files import ChosenRows
from src.distill.row_selection import select_rows
from src.exp.lookup import baseline_folder
from src.exp.record import CHOICE_OF_ROWS, weights_hash
from src.exp.stage import Stage, begin_stage, look_at_stage, run_entry_point, run_folder, run_stage
from src.student.checkpoint import load_checkpoint_of
from src.student.context import Resume
from src.teacher import processes
from src.teacher.adapter_file import WEIGHTS_FILE as ADAPTER_WEIGHTS
from src.teacher.factory import build_teacher
from src.teacher.ilora_backend import EXPORT_TIME, export_is_there, require_free_export
from src.teacher.interfaces import ITeacherRecommender

_STUDENT_KEY = "teacher.export.student_checkpoint"
_TRAIN_TIME = "teacher_train_time_total"
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
        task = processes.hear()
        return _assist(cfg, task) if task else 0.0

    def work(stage: Stage) -> float:
        begun.append(stage)
        return _teach(stage)

    value = run_stage(cfg, "teacher", work, _files)
    if not begun and not export_is_there(teacher_outputs_dir(cfg), run_folder().model_dir("teacher")):
        _export_again(cfg)
    elif not begun:
        processes.tell("")
    return value


def _assist(cfg: DictConfig, task: str) -> float:
    """The share of a process beside the main one; it writes nothing but its part of the export."""
    stage = look_at_stage(cfg, "teacher", silent_logger())
    set_seed(stage.settings.general.seed)
    teacher = build_teacher(cfg, stage.dataset, stage.folder, stage.device, _rows_to_export(stage))
    value = 0.0
    if task == _TRAIN:
        silent = tensorboard_writer(stage.folder.tensorboard_dir("teacher"), LoggingConfig(tensorboard=False))
        value = teacher.train(cfg, stage.logger, silent)
    teacher.export_for_dllm2rec(cfg, stage.logger)
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
    cfg, folder = stage.cfg, stage.folder
    teacher = _build(stage)
    value = stage.replace_result()
    record_times_in(folder.time_file)
    if value is None or not (folder.model_dir("teacher") / "adapter" / ADAPTER_WEIGHTS).is_file():
        processes.tell(_TRAIN)
        value = _train(stage, teacher)
    else:
        stage.logger.info("the adapter is trained: %s", folder.model_dir("teacher"))
        processes.tell(_EXPORT)
    with time_block(EXPORT_TIME):
        teacher.export_for_dllm2rec(cfg, stage.logger)
    teacher.evaluate(cfg, stage.logger)
    return value


def _train(stage: Stage, teacher: ITeacherRecommender) -> float:
    resume = Resume(stage.folder.last_state_file("teacher"))
    writer = stage.tensorboard(resume.steps_done())
    if not resume.file.is_file():
        forget_times(_TRAIN_TIME)
    with time_block(_TRAIN_TIME):
        value = teacher.train(stage.cfg, stage.logger, writer)
    writer.close()
    stage.keep_trained(value)
    return value


def _export_again(cfg: DictConfig) -> None:
    """Export from the finished adapter: the files lie outside the run folder and may have been moved or replaced."""
    stage = begin_stage(cfg, "teacher")
    teacher = _build(stage)
    stage.logger.info("%s: does not hold this teacher's export: exporting again", teacher_outputs_dir(cfg))
    processes.tell(_EXPORT)
    record_times_in(stage.folder.time_file)
    with time_block(EXPORT_TIME):
        teacher.export_for_dllm2rec(cfg, stage.logger)


def _build(stage: Stage) -> ITeacherRecommender:
    """The teacher; refused at once, not after hours, where it could not write its export."""
    require_free_export(
        teacher_outputs_dir(stage.cfg), stage.settings.general.overwrite, stage.folder.model_dir("teacher")
    )
    return build_teacher(stage.cfg, stage.dataset, stage.folder, stage.device, _rows_to_export(stage))


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
    rows = select_rows(active, model, stage.dataset, seed=stage.settings.general.seed, device=stage.device)
    stage.logger.info("asking for %d of %d rows: %s", len(rows), len(stage.dataset.train), active.description)
    return ChosenRows(rows, f"{active.description}, budget_ratio {active.budget_ratio:g}")


def _choosing_student(stage: Stage) -> Path:
    return baseline_folder(stage, _STUDENT_KEY, stage.settings.teacher.export.student_checkpoint)


def main() -> None:
    run_entry_point(run)


if __name__ == "__main__":
    main()
