"""An Optuna study that is kept in a file, a line of JSON for each complete trial.

Not in a database of Optuna's own: the version that Hydra's sweeper needs cannot work with today's SQLAlchemy.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from src.core.errors import UserError
from src.core.files import writing
from src.core.foreign.text import numbered_lines


def storage(folder: str, study_name: str | None, sweep_dir: str) -> InMemoryStorage:
    """`hydra.sweeper.storage`: memory, kept in `<folder>/<study_name>.jsonl` where the study has a name.

    Args:
        sweep_dir: that of the sweep which begins.
    """
    if study_name is None:
        return InMemoryStorage()
    return StudyFile(study_file(folder, study_name), Path(sweep_dir))


def study_file(folder: str, study_name: str) -> Path:
    return Path(folder).absolute() / f"{study_name}.jsonl"


def kept_trials(file: Path) -> list[FrozenTrial]:
    """The complete trials of earlier starts, in their order.

    Raises:
        UserError: a line is no trial.
    """
    lines = numbered_lines(file) if file.is_file() else []
    return [_trial(file, number, i, line) for i, (number, line) in enumerate(lines)]


class StudyFile(InMemoryStorage):
    """Optuna's storage in memory, which begins with the trials of a file and adds each that is complete to it."""

    def __init__(self, file: Path, sweep_dir: Path) -> None:
        super().__init__()
        self._file, self._sweep_dir = file, sweep_dir

    def set_study_directions(self, study_id: int, directions: Sequence[StudyDirection]) -> None:
        """The first thing that a study is told: the earlier trials are ranked by it.

        Raises:
            UserError: the sweep's folder holds jobs, whose numbers the new trials would have.
        """
        super().set_study_directions(study_id, directions)
        trials = kept_trials(self._file)
        if trials and any(self._sweep_dir.glob("*/records")):
            raise UserError(
                f"hydra.sweep.dir={self._sweep_dir}: holds jobs of an earlier start, whose {len(trials)} trials are "
                f"known from {self._file}; leave hydra.sweep.dir out, or give a new folder, for those that follow"
            )
        for trial in trials:
            self.create_new_trial(study_id, template_trial=trial)

    def set_trial_state(self, trial_id: int, state: TrialState) -> bool:
        changed = super().set_trial_state(trial_id, state)
        if state == TrialState.COMPLETE:
            with writing(self._file):
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with self._file.open("a", encoding="utf-8") as stream:
                    stream.write(_line(self.get_trial(trial_id)) + "\n")
        return changed


def _line(trial: FrozenTrial) -> str:
    spaces = {name: json.loads(distribution_to_json(space)) for name, space in trial.distributions.items()}
    times = [time.isoformat() if time else None for time in (trial.datetime_start, trial.datetime_complete)]
    return json.dumps({"value": trial.value, "params": trial.params, "spaces": spaces, "times": times})


def _trial(file: Path, number: int, index: int, line: str) -> FrozenTrial:
    try:
        kept: dict[str, Any] = json.loads(line)
        start, complete = (time and datetime.fromisoformat(time) for time in kept["times"])
        trial = FrozenTrial(
            number=index,
            trial_id=index,
            state=TrialState.COMPLETE,
            value=float(kept["value"]),
            datetime_start=start,
            datetime_complete=complete,
            params=kept["params"],
            distributions={name: json_to_distribution(json.dumps(space)) for name, space in kept["spaces"].items()},
            user_attrs={},
            system_attrs={},
            intermediate_values={},
        )
        trial._validate()
        return trial
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file}:{number}: no trial of a study ({error}); delete the line, or the file to begin anew"
        ) from error
