"""Gather the jobs of a sweep into one table over seeds: csv, Markdown, HTML, plot."""

from typing import TYPE_CHECKING

from src.exp.stage.start import start

if TYPE_CHECKING:
    from src.exp.settings import Settings


def run(cfg: "Settings") -> None:
    from src.exp.study.gathering import gather  # Matplotlib, once the settings are found sound

    gather(cfg)


def main() -> None:
    start(run)


if __name__ == "__main__":
    main()
