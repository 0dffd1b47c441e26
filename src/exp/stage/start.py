"""The first thing that a command does: signals end it properly from here on, also while its libraries are imported."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from src.exp.stage.signals import ended_by_signals

if TYPE_CHECKING:
    from src.exp.settings import Settings


def start(run: "Callable[[Settings], float | None]", artefact: str | None = None) -> None:
    """`run_entry_point`, once signals are watched; what is imported before that should be quick."""
    with ended_by_signals():
        from src.exp.stage.entry import run_entry_point

        run_entry_point(run, artefact)
