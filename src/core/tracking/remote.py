"""What trackers share that keep runs elsewhere: which run goes on, and what it was told already."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from src.core.errors import UserError
from src.core.files import read_json, write_json
from src.core.tracking.base import TrackedRun
from src.core.tracking.csv_points import POINTS_FILE, Points

_ID_FILE = "run.json"


def require_package(load: Callable[[], object], name: str) -> None:
    """Raises a UserError where the package of an extra, such as `wandb`, cannot be imported."""
    try:
        load()
    except ImportError as error:
        raise UserError(
            f"logging={name}: the package is not installed ({error}); poetry install -E {name}, or take "
            "logging=tensorboard or logging=csv"
        ) from None


def brief(error: Exception) -> str:
    """A foreign error for within a line of ours."""
    return f"{type(error).__name__}: {' '.join(str(error).split()):.200}"


class Journal:
    """The points that a run elsewhere was told, kept in the run folder.

    A resumed training makes the points since its last state again, with the same values. They cannot be taken back
    there, so those that were told are not told again: each is noted before it is told.

    Attributes:
        run_id: of the run that goes on; None: a new one has to be begun, and `begin` be called with its id.
    """

    def __init__(self, run: TrackedRun, tracker: str) -> None:
        self._folder = run.folder.tracking_dir(tracker, run.name)
        self.run_id = _earlier_id(self._folder / _ID_FILE) if run.keep_until else None
        goes_on = self.run_id is not None
        self._points = Points(self._folder / POINTS_FILE, lambda tag, step: goes_on)

    @property
    def folder(self) -> Path:
        return self._folder

    def begin(self, run_id: str) -> None:
        self.run_id = run_id
        write_json(self._folder / _ID_FILE, {"id": run_id})

    def is_new(self, tag: str, value: float, step: int) -> bool:
        """Whether a point was not told yet; it counts as told from here on."""
        if (tag, step) in self._points.known:
            return False
        self._points.add(tag, value, step)
        return True

    def close(self) -> None:
        self._points.close()


def _earlier_id(file: Path) -> str | None:
    with suppress(UserError):  # missing or damaged: a new run shows less than one that goes on, and nothing wrong
        noted = read_json(file)
        if isinstance(noted, dict) and isinstance(noted.get("id"), str):
            return noted["id"]
    return None
