"""What a trained student recommends: after one history, printed, or after each history of a file."""

from typing import TYPE_CHECKING

from src.exp.stage.start import start

if TYPE_CHECKING:
    from src.exp.settings import Settings


def run(cfg: "Settings") -> None:
    from src.core.logging import start_logging
    from src.exp.stage.lookup import newest_student

    logger, asked = start_logging(cfg.logging), cfg.recommend
    given = asked.checkpoint or str(newest_student(cfg, logger, key="recommend.checkpoint"))
    # PyTorch, once there is a student to ask.
    from src.core.device import resolve_device
    from src.serving.answers import answer
    from src.serving.recommender import Recommender, find_student

    folder = find_student(given, key="recommend.checkpoint")
    answer(Recommender.from_pretrained(folder, device=resolve_device(cfg.general.device, logger)), given, asked, logger)


def main() -> None:
    start(run)


if __name__ == "__main__":
    main()
