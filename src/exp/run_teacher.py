"""Train the teacher, export its knowledge for the student, and evaluate it: three steps, each with a record."""

from src.exp.settings import Settings
from src.exp.stage.entry import run_entry_point


def run(cfg: Settings) -> float:
    from src.exp.teacher_steps import run_steps  # PyTorch and Transformers, once the settings are found sound

    return run_steps(cfg)


def main() -> None:
    run_entry_point(run, "teacher")


if __name__ == "__main__":
    main()
