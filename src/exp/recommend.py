"""Print what a trained student recommends after a history."""

import logging
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from src.core.data_utils import load_dataset
from src.core.device import resolve_device
from src.core.errors import UserError
from src.core.foreign.escape import rich_text
from src.core.logging import LOGGER_NAME
from src.core.paths import RunFolder, data_dir, project_path, result_root
from src.exp.lookup import find_run
from src.exp.settings import parse_settings
from src.exp.stage import drop_empty_run_folder, run_entry_point
from src.student.serving import recommend


def run(cfg: DictConfig) -> None:
    settings = parse_settings(cfg)
    here = drop_empty_run_folder()
    logger = logging.getLogger(LOGGER_NAME)
    dataset = load_dataset(settings.dataset, data_dir(cfg), logger)
    asked = settings.recommend
    if asked.checkpoint is not None:
        checkpoint = project_path(asked.checkpoint)
    else:
        checkpoint = _newest(cfg, RunFolder(here), dataset.fingerprint, logger)
    device = resolve_device(settings.general.device, logger)
    best = recommend(checkpoint, dataset, asked.history, asked.top_k, asked.show_history, device)
    table = Table(title=rich_text(f"{dataset.name}, {checkpoint}"))
    for column in ("rank", "item", "title", "score"):
        table.add_column(column, justify="right" if column in ("rank", "score") else "left")
    for rank, item in enumerate(best, start=1):
        table.add_row(str(rank), rich_text(item.item_id), rich_text(item.title), f"{item.score:.4f}")
    Console().print(table)


def _newest(cfg: DictConfig, here: RunFolder, fingerprint: str, logger: logging.Logger) -> Path:
    """The distilled student of the newest run of this dataset, else the newest baseline."""
    for stage in ("distill", "baseline"):
        run = find_run(stage, here, result_root(cfg), fingerprint, "recommend.checkpoint", logger)
        if run is not None:
            return run.model_dir(stage)
    raise UserError(
        f"recommend.checkpoint=null: no finished student of dataset {cfg.dataset.name} under {result_root(cfg)}; run "
        "src.exp.run_student_baseline first or give the folder of a checkpoint (result/<run>/models/baseline)"
    )


def main() -> None:
    run_entry_point(run)


if __name__ == "__main__":
    main()
