"""What every entry point does around its own work: one error line, one run folder, one log."""

import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from src.core.data_utils import SequenceDataset, load_dataset
from src.core.device import resolve_device
from src.core.errors import UserError
from src.core.files import write_text
from src.core.foreign.escape import terminal
from src.core.git_info import PROJECT_ROOT, save_git_info
from src.core.logging import LOGGER_NAME, TensorBoardWriter, forget_times, init_logger, tensorboard_writer, time_block
from src.core.paths import RunFolder, data_dir
from src.core.seed import set_seed
from src.exp.record import Record, can_go_on, changes, is_same_training, made_from, read_record
from src.exp.settings import Settings, known_keys, parse_settings
from src.exp.sweep import run_job, run_jobs
from src.student.resume import Resume

StageFunction = Callable[[DictConfig], float | None]


def run_entry_point(stage_function: StageFunction) -> None:
    """Compose the configuration, run the stage, and turn any error into one line and exit code 1.

    Set HYDRA_FULL_ERROR=1 for the stack trace.
    """
    wants_trace = os.environ.get("HYDRA_FULL_ERROR", "0") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise instead of printing and exiting itself
    entry = hydra.main(version_base="1.3", config_path=str(PROJECT_ROOT / "conf"), config_name="config")

    # Inside the job, too: Hydra would print the whole list of overrides above an error that leaves it.
    @functools.wraps(stage_function)
    def stage(cfg: DictConfig) -> float | None:
        if is_multirun():
            return run_job(stage_function, cfg, one_line, wants_trace)
        return _or_fail(lambda: stage_function(cfg), wants_trace)

    _or_fail(lambda: run_jobs(entry(stage)), wants_trace)


def _or_fail(action: Callable[[], float | None], wants_trace: bool) -> float | None:
    try:
        return action()
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except Exception as error:
        if wants_trace:
            raise
        _fail(one_line(error), 1)


def _fail(message: str, code: int) -> NoReturn:
    logger = logging.getLogger(LOGGER_NAME)
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.emit(logger.makeRecord(LOGGER_NAME, logging.ERROR, "", 0, message, (), None))
    print(f"error: {terminal(message)}", file=sys.stderr)
    sys.exit(code)


def one_line(error: Exception) -> str:
    """The error as one readable line."""
    if isinstance(error, UserError):
        return str(error)
    unknown = re.match(r"Could not override '([\w.]+)'", str(error))
    if unknown and (allowed := known_keys(unknown[1].rpartition(".")[0])):
        group, key = unknown[1].split(".")[0], unknown[1].rpartition(".")[2]
        if key in allowed:
            return f"{unknown[1]}: the chosen {group} has no such key, only another choice of `{group}=` has it"
        return f"{unknown[1]}: unknown key; allowed there: {', '.join(allowed)}"
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    first = [line.strip() for line in str(error).splitlines() if line.strip()]
    if type(error).__module__.startswith(("hydra", "omegaconf")):
        details = [str(e).splitlines()[0] for e in chain[1:] if str(e)]
        if re.search(r"Could not find 'hydra/(launcher|sweeper)/", str(error)):
            details.append("The plugins for sweeps are an optional group: bash cmd/install.sh installs it")
        return " ".join([*first, *(d for d in details if d not in " ".join(first))])
    where = f"{type(error).__name__}: {first[0] if first else ''}"
    return f"{where} (not a known mistake in the input; HYDRA_FULL_ERROR=1 shows the stack trace)"


@dataclass(frozen=True)
class Stage:
    """A stage that has begun.

    Attributes:
        made_from: what its result depends on (`record.made_from`); empty where no record is kept.
    """

    name: str
    cfg: DictConfig
    settings: Settings
    folder: RunFolder
    commit: str
    device: torch.device
    dataset: SequenceDataset
    logger: logging.Logger
    made_from: dict[str, Any] = field(default_factory=dict)

    @property
    def tensorboard(self) -> TensorBoardWriter:
        return tensorboard_writer(self.folder.tensorboard_dir(self.name), self.settings.logging)

    @contextmanager
    def training(self, time_name: str) -> Iterator[Resume]:
        """The time that a student's training takes, and where it keeps its last state."""
        self.replace_result()
        last_state = self.folder.last_state_file(self.name)
        if not last_state.is_file():
            forget_times(self.folder.time_file, time_name)
        with time_block(time_name, self.folder.time_file) as add_time:
            yield Resume(last_state, add_time)

    def replace_result(self) -> float | None:
        """To be called once everything is checked: from here on an earlier result of the stage counts no more.

        Returns:
            The value of a training that is done and need not be repeated; None if there is none.
        """
        folder, name = self.folder, self.name
        last_state = folder.last_state_file(name)
        before = read_record(folder.record_file(name)) or Record({})
        different = "; ".join(changes(before.made_from, self.made_from))
        if not can_go_on(name, before.made_from, self.made_from):
            if last_state.is_file():
                self.logger.info("stage %s: starts from the beginning: %s", name, different)
            last_state.unlink(missing_ok=True)
        elif different:
            self.logger.info("stage %s: goes on although %s", name, different)
        trained = None
        if is_same_training(name, before.made_from, self.made_from):
            trained = before.value if before.trained is None else before.trained
        folder.eval_file(name).unlink(missing_ok=True)
        Record(self.made_from, trained=trained).write(folder.record_file(name))
        return trained

    def keep_trained(self, value: float) -> None:
        """Note that the training is done, with this best validation value, though the stage is not."""
        Record(self.made_from, trained=value).write(self.folder.record_file(self.name))

    def about(self, model: str, num_users: int, checkpoint: Path) -> dict[str, object]:
        """The head of an evaluation file."""
        root = self.folder.root
        inside = checkpoint.is_relative_to(root)
        return {
            "model": model,
            "dataset": self.dataset.name,
            "dataset_fingerprint": self.dataset.fingerprint,
            "split": "test",
            "num_users": num_users,
            "num_items": self.dataset.num_items,
            "seed": self.settings.general.seed,
            "git_commit": self.commit,
            "checkpoint": str(checkpoint.relative_to(root) if inside else checkpoint),
        }


def run_stage(
    cfg: DictConfig,
    name: str,
    work: Callable[[Stage], float],
    files: Callable[[Stage], dict[str, str | None]] = lambda stage: {},
) -> float:
    """Run a stage, unless its folder holds its result, made from the same settings, data and files.

    Args:
        work: does it, writes the evaluation last and returns the best validation value.
        files: hashes of what it reads besides the data set, by a name for messages.

    Raises:
        UserError: the folder holds a result that was made from something else, and `general.overwrite` is off.
    """
    why = ""
    if run_folder().is_finished(name):
        muted = logging.getLogger(f"{LOGGER_NAME}.muted")
        muted.disabled = True
        stage = look_at_stage(cfg, name, muted)
        finished, why = compare(stage, files)
        if finished is not None:
            print(f"stage {name}: skipped: complete and unchanged ({stage.folder.root})", file=sys.stderr)
            return finished
    stage = begin_stage(cfg, name)
    if why:
        stage.logger.info("stage %s: run again: %s", name, why)
    return record_stage(stage, work, files)


def record_stage(
    stage: Stage, work: Callable[[Stage], float], files: Callable[[Stage], dict[str, str | None]]
) -> float:
    """Run the stage and record what its result was made from."""
    stage = replace(stage, made_from=made_from(stage.cfg, stage.name, stage.dataset, files(stage)))
    value = work(stage)
    Record(stage.made_from, value).write(stage.folder.record_file(stage.name))
    stage.folder.last_state_file(stage.name).unlink(missing_ok=True)
    return value


def compare(stage: Stage, files: Callable[[Stage], dict[str, str | None]]) -> tuple[float | None, str]:
    """The value of a finished stage if it is unchanged; else None and why to run it again.

    Raises:
        UserError: see `run_stage`.
    """
    folder, name = stage.folder, stage.name
    record = read_record(folder.record_file(name))
    if record is not None and record.value is None:
        return None, "it was interrupted"
    why = "it has no record of its settings"
    if record is not None:
        why = "; ".join(changes(record.made_from, made_from(stage.cfg, name, stage.dataset, files(stage))))
        if not why:
            return record.value, ""
    if not stage.settings.general.overwrite:
        raise UserError(
            f"{folder.root}: stage {name} is finished there ({folder.eval_file(name).name} exists), and {why}; use "
            "another hydra.run.dir, or general.overwrite=true to run it again"
        )
    return None, why


def run_folder() -> RunFolder:
    """The run folder of this job."""
    return RunFolder(Path(HydraConfig.get().runtime.output_dir))


def begin_stage(cfg: DictConfig, name: str) -> Stage:
    """Check the settings, open the log, snapshot configuration and commit, load the data."""
    settings, folder = parse_settings(cfg), run_folder()
    logger = init_logger(folder.log_file(name), settings.logging)
    logger.info("stage %s in %s", name, folder.root)
    _save_configuration(cfg, folder, name)
    commit = save_git_info(folder.root)
    device = resolve_device(settings.general.device, logger)
    set_seed(settings.general.seed)
    return Stage(name, cfg, settings, folder, commit, device, _load_data(cfg, settings, logger), logger)


def look_at_stage(cfg: DictConfig, name: str, logger: logging.Logger) -> Stage:
    """The stage as `begin_stage` gives it, but nothing in its folder is touched."""
    settings = parse_settings(cfg)
    device = resolve_device(settings.general.device, logger)
    return Stage(name, cfg, settings, run_folder(), "", device, _load_data(cfg, settings, logger), logger)


def _load_data(cfg: DictConfig, settings: Settings, logger: logging.Logger) -> SequenceDataset:
    """The data set; the student's window is cut to its windows."""
    dataset = load_dataset(settings.dataset, data_dir(cfg), logger)
    if settings.student.max_seq_len > dataset.max_seq_len:
        logger.info(
            "student.max_seq_len=%d is cut to dataset.max_seq_len=%d",
            settings.student.max_seq_len,
            dataset.max_seq_len,
        )
        settings.student.max_seq_len = dataset.max_seq_len
    return dataset


def _save_configuration(cfg: DictConfig, folder: RunFolder, stage: str) -> None:
    """Write Hydra's three files to `.hydra/`, as those of the latest stage, and to `.hydra/<stage>/`."""
    files = {
        "config.yaml": cfg,
        "hydra.yaml": OmegaConf.masked_copy(HydraConfig.instance().cfg, "hydra"),
        "overrides.yaml": HydraConfig.get().overrides.task,
    }
    for name, content in files.items():
        for target in (folder.root / ".hydra", folder.snapshot_dir(stage)):
            write_text(target / name, OmegaConf.to_yaml(content))


def drop_empty_run_folder() -> Path:
    """Take away the run folder that Hydra has made, for a command that only looks; an older folder stays."""
    here = Path(HydraConfig.get().runtime.output_dir)
    if not any(here.iterdir()):
        here.rmdir()
    return here


def is_multirun() -> bool:
    """Whether this job is one of a sweep."""
    return HydraConfig.get().mode == RunMode.MULTIRUN
