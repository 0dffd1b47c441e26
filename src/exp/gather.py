"""Gather the jobs of a sweep into one table over seeds: csv, Markdown, HTML, plot."""

from src.exp.settings import Settings
from src.exp.stage.entry import run_entry_point


def run(cfg: Settings) -> None:
    from src.exp.study.gathering import gather  # Matplotlib, once the settings are found sound

    gather(cfg)


def main() -> None:
    run_entry_point(run)


if __name__ == "__main__":
    main()
