"""Train the teacher, export its knowledge for the student, and evaluate it: three steps, each with a record."""

from typing import TYPE_CHECKING

from src.exp.stage.start import start

if TYPE_CHECKING:
    from src.exp.settings import Settings


def run(cfg: "Settings") -> float:
    from src.exp.teacher_steps import run_steps  # PyTorch and Transformers, once the settings are found sound

    return run_steps(cfg)


def main() -> None:
    start(run, "teacher")


if __name__ == "__main__":
    main()
