"""Train the student with the teacher's exported knowledge."""

from pathlib import Path

from omegaconf import DictConfig

from src.core.errors import UserError
from src.core.files import write_json
from src.core.logging import record_times_in, time_block
from src.core.paths import teacher_outputs_dir
from src.distill.data_bridge import TeacherOutputs, load_teacher_outputs
from src.distill.dllm2rec_wrapper import PROTOCOL, arguments, check_settings, find_program, run_program, write_files
from src.distill.selection_log import LoggedPolicy
from src.distill.selection_policy import SelectionPolicy, SelectionPolicyAll, build_selection_policy
from src.distill.trainer_distill import Distillation, train_distilled
from src.exp.lookup import baseline_folder
from src.exp.record import teacher_files_hash, weights_hash
from src.exp.stage import Stage, run_entry_point, run_stage
from src.exp.students import finish
from src.student.datamodule import require_full_batch
from src.student.training import FitResult, save_history


def run(cfg: DictConfig) -> float:
    if cfg.distill.engine == "submodule":
        return run_stage(cfg, "dllm2rec_upstream", _run_original, lambda stage: {"the teacher's files": _hash(stage)})
    return run_stage(cfg, "distill", train, _files)


def _files(stage: Stage) -> dict[str, str | None]:
    return {
        "the teacher's files": _hash(stage),
        "the initial weights": weights_hash(_init_checkpoint(stage)),
        "teacher.export.rows": stage.settings.teacher.export.rows,
    }


def _init_checkpoint(stage: Stage) -> Path | None:
    distill = stage.settings.distill
    if distill.init == "scratch":
        return None
    return baseline_folder(stage, "distill.init_checkpoint", distill.init_checkpoint)


def _hash(stage: Stage) -> str | None:
    return teacher_files_hash(teacher_outputs_dir(stage.cfg))


def train(stage: Stage) -> float:
    """Train and test the student with the teacher's files; returns the best validation value."""
    return train_with(stage, teacher_outputs(stage), _init_checkpoint(stage))


def train_with(stage: Stage, outputs: TeacherOutputs, init_checkpoint: Path | None) -> float:
    """Train and test the student with this teacher; returns the best validation value."""
    policy = _policy(stage, outputs)
    with stage.training("distill_student_train_time") as context:
        logged = None if isinstance(policy, SelectionPolicyAll) else LoggedPolicy(policy, context.writer)
        distillation = Distillation(
            settings=stage.settings.distill,
            outputs=outputs,
            policy=logged or policy,
            init_checkpoint=init_checkpoint,
        )
        result = train_distilled(
            stage.settings.student,
            stage.dataset,
            distillation=distillation,
            metrics=stage.settings.metrics,
            folder=stage.folder.model_dir("distill"),
            context=context,
        )
    if logged is not None:
        logged.save(stage.folder.selection_file)
    return finish(stage, result, context.writer)


def _policy(stage: Stage, outputs: TeacherOutputs) -> SelectionPolicy:
    """The policy of `active`; one that chose rows before the export has nothing left to choose.

    Raises:
        UserError: a policy without a loss to select for, or one whose export holds all rows.
    """
    strategy, settings = stage.settings.active.strategy, stage.settings
    if strategy == "all":
        return SelectionPolicyAll()
    if settings.teacher.export.rows == "policy":
        if outputs.known is None:
            raise UserError(
                f"teacher.export.rows=policy: the export in {teacher_outputs_dir(stage.cfg)} holds all rows; leave the "
                "key out to apply the policy while distilling, or export again"
            )
        stage.logger.info("the rows were chosen before the export (%s): distilling all of them", outputs.selection)
        return SelectionPolicyAll()
    if not settings.distill.gates_samples:
        raise UserError(
            f"active.strategy={strategy}: there is no loss to select samples for with distill.lambda="
            f"{settings.distill.kd_weight:g}, distill.alpha={settings.distill.alpha:g} and distill.embedding="
            f"{settings.distill.embedding}; use active=all"
        )
    return build_selection_policy(settings.active)


def _run_original(stage: Stage) -> float:
    """Train with DLLM2Rec's own program; its metrics become `metrics/eval_dllm2rec_upstream.json`."""
    settings, dataset, folder = stage.settings, stage.dataset, stage.folder
    monitor = settings.metrics.monitor
    check_settings(settings.distill, settings.student, settings.general.seed, settings.active.strategy, monitor)
    require_full_batch(settings.distill.batch_size, len(dataset.train))
    program, outputs = find_program(), teacher_outputs(stage)
    stage.replace_result()
    work = folder.model_dir(stage.name)
    write_files(work, dataset, outputs)
    stage.logger.info("histories are cut to their last 10 items, as the original program has it")
    words = arguments(settings.distill, settings.student, stage.device)
    stage.logger.info("in %s: python %s %s", work, program / "main.py", " ".join(words))
    record_times_in(folder.time_file)
    with time_block("dllm2rec_upstream_train_time"):
        result = run_program(program, work, words, settings.distill.num_epochs, work / "output.log")
    save_history(FitResult(history=result.epochs), folder.history_file(stage.name))
    metrics = result.metrics("test")
    about = stage.about(f"{settings.student.name}, original program", len(dataset.test), work)
    write_json(
        folder.eval_file(stage.name),
        {**about, "protocol": PROTOCOL, "best_epoch": result.best_epoch, "metrics": metrics, "metrics_masked": {}},
    )
    stage.logger.info("test %s: %.4f in epoch %d (%s)", monitor, metrics[monitor], result.best_epoch, PROTOCOL)
    return result.metrics("valid")[monitor]


def teacher_outputs(stage: Stage) -> TeacherOutputs:
    """The teacher's files, or nothing where the settings use no part of them."""
    distill = stage.settings.distill
    if not (distill.needs_ranking or distill.needs_embeddings):
        stage.logger.warning("distill.lambda=0 and distill.ed_weight=0: this is the baseline, no teacher is read")
        return TeacherOutputs()
    folder = teacher_outputs_dir(stage.cfg)
    outputs = load_teacher_outputs(folder, stage.dataset, distill, logger=stage.logger)
    stage.logger.info("teacher: %s (manifest %s)", folder, (outputs.manifest_sha256 or "none")[:12])
    return outputs


def main() -> None:
    run_entry_point(run)


if __name__ == "__main__":
    main()
