"""Print what a trained student recommends after a history."""

import logging
from pathlib import Path

from rich.console import Console
from rich.table import Table

from src.core.data_utils import load_dataset
from src.core.errors import UserError
from src.core.foreign.escape import rich_text
from src.core.logging import LOGGER_NAME
from src.core.paths import data_dir, project_path, result_root
from src.exp.settings import Settings
from src.exp.stage.entry import run_entry_point
from src.exp.stage.lookup import find, of_data
from src.exp.stage.stage import run_folder


def run(cfg: Settings) -> None:
    logger = logging.getLogger(LOGGER_NAME)
    dataset = load_dataset(cfg.dataset, data_dir(cfg), logger)
    asked = cfg.recommend
    if asked.checkpoint is not None:
        checkpoint = project_path(asked.checkpoint)
    else:
        checkpoint = _newest(cfg, dataset.fingerprint, logger)
    # PyTorch, once there is a student to ask.
    from src.core.device import resolve_device
    from src.student.serving import recommend

    device = resolve_device(cfg.general.device, logger)
    best = recommend(
        checkpoint,
        dataset,
        history=asked.history,
        top_k=asked.top_k,
        show_history=asked.show_history,
        device=device,
    )
    table = Table(title=rich_text(f"{dataset.name}, {checkpoint}"))
    for column in ("rank", "item", "title", "score"):
        table.add_column(column, justify="right" if column in ("rank", "score") else "left")
    for rank, item in enumerate(best, start=1):
        table.add_row(str(rank), rich_text(item.item_id), rich_text(item.title), f"{item.score:.4f}")
    Console().print(table)


def _newest(cfg: Settings, fingerprint: str, logger: logging.Logger) -> Path:
    """The distilled student of the newest run of this dataset, else the newest baseline."""
    for name in ("distill", "baseline"):
        run = find(
            name,
            root=result_root(cfg),
            here=run_folder(),
            misfit=of_data(fingerprint),
            why="recommend.checkpoint not given",
            logger=logger,
            of_studies=False,
        )
        if run is not None:
            return run.folder.model_dir(name)
    raise UserError(
        f"recommend.checkpoint=null: no finished student of dataset {cfg.dataset.name} under {result_root(cfg)}; run "
        "src.exp.run_student_baseline first or give the folder of a checkpoint (result/<run>/models/baseline)"
    )


def main() -> None:
    run_entry_point(run)


if __name__ == "__main__":
    main()
