"""Train the teacher, evaluate it, and export its knowledge for the student.

Under `accelerate launch` the main process runs the stage, the others help with training and export.
"""

from pathlib import Path

import torch
from omegaconf import DictConfig

from src.core.errors import UserError
from src.core.files import write_text
from src.core.logging import LoggingConfig, silent_logger, tensorboard_writer, time_block
from src.core.paths import project_path, teacher_outputs_dir
from src.core.seed import set_seed
from src.core.teacher_files import MANIFEST_FILE, ChosenRows, find_damage, read_manifest
from src.distill.row_selection import select_rows
from src.exp.lookup import baseline_folder
from src.exp.record import checkpoint_hash
from src.exp.stage import Stage, begin_stage, look_at_stage, run_entry_point, run_folder, run_stage
from src.student.checkpoint import load_checkpoint_of
from src.teacher import processes
from src.teacher.factory import build_teacher
from src.teacher.ilora_backend import require_free_export

_STUDENT_KEY = "teacher.export.student_checkpoint"
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
    if not begun and not _export_is_there(cfg):
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
    given = stage.settings.teacher.rec_model_path
    files = {"the frozen recommender": checkpoint_hash(project_path(given) if given else None)}
    if stage.settings.teacher.export.rows == "policy":
        files["the student that chooses rows"] = checkpoint_hash(_choosing_student(stage))
        files["active"] = str(stage.settings.active)
    return files


def _teach(stage: Stage) -> float:
    cfg = stage.cfg
    adapter = stage.folder.model_dir("teacher") / "adapter"
    require_free_export(teacher_outputs_dir(cfg), stage.settings.general.overwrite, adapter)
    teacher = build_teacher(cfg, stage.dataset, stage.folder, stage.device, _rows_to_export(stage))
    stage.replace_result()
    processes.tell(_TRAIN)
    writer = stage.tensorboard
    with time_block("teacher_train_time_total", stage.folder.time_file):
        value = teacher.train(cfg, stage.logger, writer)
    with time_block("distill_teacher_export_time", stage.folder.time_file):
        teacher.export_for_dllm2rec(cfg, stage.logger)
    _keep_manifest(stage)
    teacher.evaluate(cfg, stage.logger)
    writer.close()
    return value


def _export_again(cfg: DictConfig) -> None:
    """Export from the finished adapter: the files lie outside the run folder and may have been moved or replaced.

    `metrics/time.json` keeps what the first export took.
    """
    stage = begin_stage(cfg, "teacher")
    target = teacher_outputs_dir(cfg)
    require_free_export(target, stage.settings.general.overwrite, stage.folder.model_dir("teacher") / "adapter")
    stage.logger.info("%s: does not hold this teacher's export: exporting again", target)
    teacher = build_teacher(cfg, stage.dataset, stage.folder, stage.device, _rows_to_export(stage))
    processes.tell(_EXPORT)
    teacher.export_for_dllm2rec(cfg, stage.logger)
    _keep_manifest(stage)


def _export_is_there(cfg: DictConfig) -> bool:
    """Whether the teacher's files are those that this run folder's teacher has written."""
    kept, target = run_folder().model_dir("teacher") / MANIFEST_FILE, teacher_outputs_dir(cfg)
    there = target / MANIFEST_FILE
    if not (kept.is_file() and there.is_file() and kept.read_bytes() == there.read_bytes()):
        return False
    manifest = read_manifest(target)
    return manifest is not None and find_damage(target, manifest) is None


def _keep_manifest(stage: Stage) -> None:
    """A copy of the export's manifest, by which the run folder knows its export again."""
    manifest = (teacher_outputs_dir(stage.cfg) / MANIFEST_FILE).read_text(encoding="utf-8")
    write_text(stage.folder.model_dir("teacher") / MANIFEST_FILE, manifest)


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
