"""What every entry point does around its own work: one error line, one run folder, one log."""

import functools
import logging
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from src.core.data_utils import SequenceDataset, load_dataset
from src.core.device import resolve_device
from src.core.errors import UserError
from src.core.files import write_text
from src.core.git_info import PROJECT_ROOT, save_git_info
from src.core.logging import LOGGER_NAME, TensorBoardWriter, init_logger, tensorboard_writer
from src.core.paths import RunFolder, data_dir
from src.core.seed import set_seed
from src.exp.settings import Settings, known_keys, parse_settings

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
        return _or_fail(lambda: stage_function(cfg), wants_trace)

    _or_fail(entry(stage), wants_trace)


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
    print(f"error: {message}", file=sys.stderr)
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
        return " ".join([*first, *(d for d in details if d not in " ".join(first))])
    where = f"{type(error).__name__}: {first[0] if first else ''}"
    return f"{where} (not a known mistake in the input; HYDRA_FULL_ERROR=1 shows the stack trace)"


@dataclass(frozen=True)
class Stage:
    """A stage that has begun."""

    name: str
    cfg: DictConfig
    settings: Settings
    folder: RunFolder
    commit: str
    device: torch.device
    dataset: SequenceDataset
    logger: logging.Logger

    @property
    def tensorboard(self) -> TensorBoardWriter:
        return tensorboard_writer(self.folder.tensorboard_dir(self.name), self.settings.logging)

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


def begin_stage(cfg: DictConfig, name: str) -> Stage:
    """Check the settings, refuse to overwrite, open the log, snapshot configuration and commit, load the data."""
    settings = parse_settings(cfg)
    folder = RunFolder(Path(HydraConfig.get().runtime.output_dir))
    if folder.is_finished(name) and not settings.general.overwrite:
        raise UserError(
            f"{folder.root}: stage {name} is finished there ({folder.eval_file(name).name} exists); use another "
            "hydra.run.dir, or general.overwrite=true to run it again"
        )
    logger = init_logger(folder.log_file(name), settings.logging)
    logger.info("stage %s in %s", name, folder.root)
    _save_configuration(cfg, folder, name)
    commit = save_git_info(folder.root)
    device = resolve_device(settings.general.device, logger)
    set_seed(settings.general.seed)
    dataset = load_dataset(settings.dataset, data_dir(cfg), logger)
    if settings.student.max_seq_len > dataset.max_seq_len:
        logger.info(
            "student.max_seq_len=%d is cut to dataset.max_seq_len=%d",
            settings.student.max_seq_len,
            dataset.max_seq_len,
        )
        settings.student.max_seq_len = dataset.max_seq_len
    return Stage(name, cfg, settings, folder, commit, device, dataset, logger)


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


def is_multirun() -> bool:
    """Whether this job is one of a sweep."""
    return HydraConfig.get().mode == RunMode.MULTIRUN
