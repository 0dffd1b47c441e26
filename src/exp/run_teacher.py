"""Train the teacher, evaluate it, and export its knowledge for the student.

Under `accelerate launch` the main process runs the stage, the others help with training and export.
"""

import torch
from omegaconf import DictConfig

from src.core.data_utils import load_dataset
from src.core.device import resolve_device
from src.core.errors import UserError
from src.core.logging import LoggingConfig, silent_logger, tensorboard_writer, time_block
from src.core.paths import data_dir, project_path, teacher_outputs_dir
from src.core.seed import set_seed
from src.exp.record import checkpoint_hash
from src.exp.settings import parse_settings
from src.exp.stage import Stage, run_entry_point, run_folder, run_stage
from src.teacher import processes
from src.teacher.factory import build_teacher
from src.teacher.ilora_backend import require_free_export


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
        return _assist(cfg) if processes.hear() else 0.0

    def work(stage: Stage) -> float:
        begun.append(stage)
        return _teach(stage)

    value = run_stage(cfg, "teacher", work, _files)
    if not begun:
        processes.tell(False)
    return value


def _assist(cfg: DictConfig) -> float:
    """The share of a process beside the main one; it writes nothing but its part of the export."""
    settings, logger, folder = parse_settings(cfg), silent_logger(), run_folder()
    device = resolve_device(settings.general.device, logger)
    set_seed(settings.general.seed)
    teacher = build_teacher(cfg, load_dataset(settings.dataset, data_dir(cfg), logger), folder, device)
    silent = tensorboard_writer(folder.tensorboard_dir("teacher"), LoggingConfig(tensorboard=False))
    value = teacher.train(cfg, logger, silent)
    teacher.export_for_dllm2rec(cfg, logger)
    return value


def _files(stage: Stage) -> dict[str, str | None]:
    """Only what is small: a LLaMA is known by its path."""
    given = stage.settings.teacher.rec_model_path
    return {"the frozen recommender": checkpoint_hash(project_path(given) if given else None)}


def _teach(stage: Stage) -> float:
    cfg = stage.cfg
    adapter = stage.folder.model_dir("teacher") / "adapter"
    require_free_export(teacher_outputs_dir(cfg), stage.settings.general.overwrite, adapter)
    teacher = build_teacher(cfg, stage.dataset, stage.folder, stage.device)
    stage.replace_result()
    processes.tell(True)
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
