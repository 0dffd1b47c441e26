"""Answer one question by several trainings: variants x seeds, each a run folder, and one table, plot and page.

    python -m src.exp.run_study study=controls study.run_dir=result/<run of a distillation>

`study=controls` asks whether it is the LLM that helps, `ablations` which part of the distillation does, `selection`
which samples are worth distilling, `curve` how few rows the teacher has to be asked for. A study of one's own is a
YAML in `conf/study`. Jobs run through Hydra's launcher (`hydra/launcher=parallel`, `slurm`). Started again with the
same `hydra.run.dir`, only what is missing is trained.
"""

from typing import TYPE_CHECKING

from src.exp.stage.start import start

if TYPE_CHECKING:
    from src.exp.settings import Settings


def run(cfg: "Settings") -> None:
    from src.exp.study.run import run  # PyTorch and Matplotlib, once the settings are found sound

    run(cfg)


def main() -> None:
    start(run, "study")


if __name__ == "__main__":
    main()
