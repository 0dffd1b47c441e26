"""Train the teacher, evaluate it, and export its knowledge for the student."""

from omegaconf import DictConfig

from src.core.logging import time_block
from src.core.paths import teacher_outputs_dir
from src.exp.stage import begin_stage, run_entry_point
from src.teacher.factory import build_teacher
from src.teacher.ilora_backend import require_free_export


def run(cfg: DictConfig) -> float:
    stage = begin_stage(cfg, "teacher")
    adapter = stage.folder.model_dir("teacher") / "adapter"
    require_free_export(teacher_outputs_dir(cfg), stage.settings.general.overwrite, adapter)
    teacher = build_teacher(cfg, stage.dataset, stage.folder, stage.device)
    writer = stage.tensorboard
    with time_block("teacher_train_time_total", stage.folder.time_file):
        value = teacher.train(cfg, stage.logger, writer)
    with time_block("distill_teacher_export_time", stage.folder.time_file):
        teacher.export_for_dllm2rec(cfg, stage.logger)
    teacher.evaluate(cfg, stage.logger)
    writer.close()
    return value


def main() -> None:
    run_entry_point(run)


if __name__ == "__main__":
    main()
