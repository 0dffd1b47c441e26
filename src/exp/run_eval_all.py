"""Evaluate the checkpoints of a run again and write the comparison: table, plots, report."""

from typing import TYPE_CHECKING

from src.exp.stage.start import start

if TYPE_CHECKING:
    from src.exp.settings import Settings


def run(cfg: "Settings") -> float:
    from src.core.artefacts import locked
    from src.exp.compare.sources import find_sources
    from src.exp.stage.stage import look, run_folder

    with locked(run_folder().root):
        stage = look(cfg, "eval")
        sources = find_sources(stage)
        from src.exp.report.evaluation import evaluate  # PyTorch and Matplotlib, once there is something to evaluate

        return evaluate(stage, sources)


def main() -> None:
    start(run, "eval")


if __name__ == "__main__":
    main()
