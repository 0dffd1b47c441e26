"""A trained student as ONNX, for what serves without PyTorch.

    python -m src.exp.export_onnx export.checkpoint=result/<run>/models/distill
"""

from typing import TYPE_CHECKING

from src.exp.stage.start import start

if TYPE_CHECKING:
    from src.exp.settings import Settings


def run(cfg: "Settings") -> None:
    from src.core.logging import start_logging
    from src.core.paths import ONNX_FILE, project_path
    from src.exp.stage.lookup import newest_student

    logger, asked = start_logging(cfg.logging), cfg.export
    given = asked.checkpoint or str(newest_student(cfg, logger, key="export.checkpoint"))
    # PyTorch, once there is a student.
    from src.serving.onnx_export import export_onnx
    from src.serving.recommender import find_student
    from src.student.checkpoint import load_checkpoint

    folder = find_student(given, key="export.checkpoint")
    student, info = load_checkpoint(folder)
    output = folder / ONNX_FILE if asked.output is None else project_path(asked.output)
    about = {"student": student.config.name, "data": info.dataset, "commit": info.git_commit}
    difference = export_onnx(student, output, about)
    logger.info("wrote %s; its scores differ from PyTorch's by at most %.1g of their size", output, difference)


def main() -> None:
    start(run)


if __name__ == "__main__":
    main()
