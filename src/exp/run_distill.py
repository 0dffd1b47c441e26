"""Train the student with the teacher's exported knowledge."""

from pathlib import Path

from omegaconf import DictConfig

from src.core.errors import UserError
from src.core.logging import time_block
from src.core.paths import project_path, result_root, teacher_outputs_dir
from src.distill.data_bridge import TeacherOutputs, load_teacher_outputs
from src.distill.selection_policy import build_selection_policy
from src.distill.trainer_distill import train_distilled
from src.exp.lookup import find_run
from src.exp.stage import Stage, begin_stage, run_entry_point
from src.exp.students import finish


def run(cfg: DictConfig) -> float:
    stage = begin_stage(cfg, "distill")
    settings = stage.settings
    outputs = _teacher_outputs(stage)
    init_checkpoint = _init_checkpoint(stage)
    writer = stage.tensorboard
    with time_block("distill_student_train_time", stage.folder.time_file):
        result = train_distilled(
            settings.distill,
            settings.student,
            stage.dataset,
            outputs,
            build_selection_policy(cfg.active),
            init_checkpoint,
            settings.metrics,
            stage.folder.model_dir("distill"),
            settings.general.seed,
            stage.device,
            stage.logger,
            writer,
        )
    return finish(stage, result, writer)


def _teacher_outputs(stage: Stage) -> TeacherOutputs:
    """The teacher's files, or nothing where the settings use no part of them."""
    distill = stage.settings.distill
    if not (distill.needs_ranking or distill.needs_embeddings):
        stage.logger.warning("distill.lambda=0 and distill.ed_weight=0: this is the baseline, no teacher is read")
        return TeacherOutputs(None, None, None, None)
    folder = teacher_outputs_dir(stage.cfg)
    outputs = load_teacher_outputs(
        folder,
        stage.dataset,
        distill.top_k,
        distill.needs_embeddings,
        distill.needs_ranking,
        stage.logger,
        distill.confidence == "per_sequence",
    )
    stage.logger.info("teacher: %s (manifest %s)", folder, (outputs.manifest_sha256 or "none")[:12])
    return outputs


def _init_checkpoint(stage: Stage) -> Path | None:
    distill = stage.settings.distill
    if distill.init == "scratch":
        return None
    if distill.init_checkpoint is not None:
        return project_path(distill.init_checkpoint)
    run = find_run(
        "baseline",
        stage.folder,
        result_root(stage.cfg),
        stage.dataset.fingerprint,
        "distill.init_checkpoint",
        stage.logger,
    )
    if run is None:
        raise UserError(
            f"distill.init=baseline: no finished baseline of dataset {stage.dataset.name} found; run "
            "src.exp.run_student_baseline first or set distill.init_checkpoint"
        )
    return run.model_dir("baseline")


def main() -> None:
    run_entry_point(run)


if __name__ == "__main__":
    main()
