"""Train the student with a teacher's exported knowledge."""

from src.exp.settings import Settings
from src.exp.stage.entry import run_entry_point
from src.exp.stage.stage import Stage, Step, run_stage


def run(cfg: Settings) -> float:
    return run_stage(cfg, "dllm2rec_upstream" if cfg.distill.engine == "submodule" else "distill", _plan)


def _plan(stage: Stage) -> list[Step]:
    from src.exp.distill_steps import plan  # PyTorch, once settings and data are found sound

    return plan(stage)


def main() -> None:
    run_entry_point(run, "distill")


if __name__ == "__main__":
    main()
