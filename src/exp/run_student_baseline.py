"""Train the student without a teacher."""

from src.exp.settings import Settings
from src.exp.stage.entry import run_entry_point
from src.exp.stage.stage import Stage, Step, run_stage


def run(cfg: Settings) -> float:
    return run_stage(cfg, "baseline", _plan)


def _plan(stage: Stage) -> list[Step]:
    from src.exp.baseline_steps import plan  # PyTorch, once settings and data are found sound

    return plan(stage)


def main() -> None:
    run_entry_point(run, "baseline")


if __name__ == "__main__":
    main()
