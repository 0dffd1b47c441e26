"""Train the teacher, export its knowledge for the student, and evaluate it: three steps, each with a record.

Under `accelerate launch` the main process runs the stage, the others help with training and export.
"""

from functools import partial
from pathlib import Path

import torch

from src.core.errors import UserError
from src.core.logging import forget_times, silent_logger, time_block
from src.core.paths import teacher_outputs_dir
from src.core.seed import set_seed
from src.core.settings import flat_settings
from src.core.teacher_files import ChosenRows
from src.distill.row_selection import select_rows
from src.exp.settings import Settings
from src.exp.stage.entry import run_entry_point
from src.exp.stage.inputs import weights_hash
from src.exp.stage.lookup import baseline_folder
from src.exp.stage.stage import Stage, Step, look, run_folder, run_stage
from src.student.checkpoint import load_checkpoint_of
from src.student.context import Resume
from src.teacher import processes
from src.teacher.factory import build_teacher
from src.teacher.ilora_backend import ILoRATeacher

TRAIN_TIME, EXPORT_TIME = "teacher_train_time_total", "distill_teacher_export_time"  # in metrics/time.json
_CHOOSER_KEY = "teacher.export.student_checkpoint"
_TRAIN, _EXPORT, _NOTHING = "train", "export", ""  # what the main process asks the others to help with


def run(cfg: Settings) -> float:
    on_cpu = cfg.general.device == "cpu" or not torch.cuda.is_available()
    team = processes.state(torch.device("cpu" if on_cpu else "cuda"))
    _require_one_folder()
    if not team.is_main_process:
        return _assist(cfg)
    value = run_stage(cfg, "teacher", plan)
    processes.broadcast(_NOTHING)
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
    cfg, folder, target = stage.settings, stage.folder, teacher_outputs_dir(stage.settings)
    teacher = _build(stage)
    underway = tuple(flat_settings(cfg.teacher, "teacher", ["underway"]))

    def step(name: str, work: str, **options: object) -> Step:
        return Step(
            artefact=folder.artefact(name),
            made_from=partial(teacher.made_from, work, cfg),
            files=partial(teacher.files, work),
            **options,
        )

    train = step("teacher", "train", work=lambda: _train(stage, teacher), underway=underway, forget=teacher.forget)
    export = step("teacher_export", "export", work=lambda: _export(stage, teacher))
    evaluate = step("teacher_evaluation", "evaluate", work=lambda: teacher.evaluate(cfg, stage.logger))
    return [train, export, evaluate]


def _build(stage: Stage) -> ILoRATeacher:
    return build_teacher(
        stage.settings, stage.dataset, folder=stage.folder, device=stage.device, rows=_rows_to_export(stage)
    )


def _train(stage: Stage, teacher: ILoRATeacher) -> float:
    resume = Resume(stage.folder.last_state_file("teacher"))
    if not resume.file.is_file():
        forget_times(TRAIN_TIME)
    writer = stage.tensorboard(resume.steps_done())
    processes.broadcast(_TRAIN)
    with time_block(TRAIN_TIME) as add_time:
        teacher.on_save = add_time
        value = teacher.train(stage.settings, stage.logger, writer)
    writer.close()
    return value


def _export(stage: Stage, teacher: ILoRATeacher) -> None:
    processes.broadcast(_EXPORT)
    if not teacher.has_shards():
        forget_times(EXPORT_TIME)
    with time_block(EXPORT_TIME) as add_time:
        teacher.on_shard = add_time
        teacher.export_for_dllm2rec(stage.settings, stage.logger)


def _assist(cfg: Settings) -> float:
    """The share of a process beside the main one; it writes nothing but its part of the export."""
    stage = look(cfg, "teacher", silent_logger())
    set_seed(cfg.general.seed)
    teacher, value = _build(stage), 0.0
    while task := processes.receive():
        if task == _TRAIN:
            value = teacher.train(cfg, stage.logger, NO_WRITER)
        else:
            teacher.export_for_dllm2rec(cfg, stage.logger)
    return value


def _rows_to_export(stage: Stage) -> ChosenRows | None:
    """What `active` chooses from the baseline alone, before anything costly; None: all rows.

    Raises:
        UserError: no finished baseline, or a policy that leaves nothing out or needs the teacher.
    """
    cfg = stage.settings
    if cfg.teacher.export.rows == "all":
        return None
    if cfg.active.strategy == "all":
        raise UserError("teacher.export.rows=policy: active=all leaves no row out; use active=random or uncertainty")
    chooser = baseline_folder(stage, _CHOOSER_KEY, cfg.teacher.export.student_checkpoint)
    model = load_checkpoint_of(chooser, stage.dataset, _CHOOSER_KEY)
    rows = select_rows(cfg.active, model, stage.dataset, seed=cfg.general.seed, device=stage.device)
    how = cfg.active.describe()
    stage.logger.info("asking for %d of %d rows: %s", len(rows), len(stage.dataset.train), how)
    return ChosenRows(rows, how)


def main() -> None:
    run_entry_point(run, "teacher")


if __name__ == "__main__":
    main()
