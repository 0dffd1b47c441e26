"""Train the student with a teacher's exported knowledge."""

from typing import TYPE_CHECKING

from src.exp.stage.start import start

if TYPE_CHECKING:
    from src.exp.settings import Settings
    from src.exp.stage.stage import Stage, Step


def run(cfg: "Settings") -> float:
    from src.exp.stage.stage import run_stage

    return run_stage(cfg, "dllm2rec_upstream" if cfg.distill.engine == "submodule" else "distill", _plan)


def _plan(stage: "Stage") -> "list[Step]":
    from src.exp.distill_steps import plan  # PyTorch, once settings and data are found sound

    return plan(stage)


def main() -> None:
    start(run, "distill")


if __name__ == "__main__":
    main()
