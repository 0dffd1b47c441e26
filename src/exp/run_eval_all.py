"""Evaluate the checkpoints of a run again and write the comparison: table, plots, report."""

from src.core.artefacts import locked
from src.exp.compare.sources import find_sources
from src.exp.settings import Settings
from src.exp.stage.entry import run_entry_point
from src.exp.stage.stage import look, run_folder


def run(cfg: Settings) -> float:
    with locked(run_folder().root):
        stage = look(cfg, "eval")
        sources = find_sources(stage)
        from src.exp.report.evaluation import evaluate  # PyTorch and Matplotlib, once there is something to evaluate

        return evaluate(stage, sources)


def main() -> None:
    run_entry_point(run, "eval")


if __name__ == "__main__":
    main()
