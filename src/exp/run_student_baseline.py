"""Train the student without a teacher."""

from typing import TYPE_CHECKING

from src.exp.stage.start import start

if TYPE_CHECKING:
    from src.exp.settings import Settings
    from src.exp.stage.stage import Stage, Step


def run(cfg: "Settings") -> float:
    from src.exp.stage.stage import run_stage

    return run_stage(cfg, "baseline", _plan)


def _plan(stage: "Stage") -> "list[Step]":
    from src.exp.baseline_steps import plan  # PyTorch, once settings and data are found sound

    return plan(stage)


def main() -> None:
    start(run, "baseline")


if __name__ == "__main__":
    main()
