"""The configuration that a stage was run with, as Hydra composed it: kept in its run folder, and read again."""

from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from src.core.files import write_text
from src.core.paths import RunFolder
from src.core.settings import load_yaml

_OVERRIDES_FILE = "overrides.yaml"


def save_configuration(folder: RunFolder, stage: str, composed: DictConfig) -> None:
    """Write Hydra's three files to `.hydra/`, as those of the latest stage, and to `.hydra/<stage>/`."""
    files = {
        "config.yaml": composed,
        "hydra.yaml": OmegaConf.create({"hydra": HydraConfig.get()}),
        _OVERRIDES_FILE: HydraConfig.get().overrides.task,
    }
    for name, content in files.items():
        for target in (folder.root / ".hydra", folder.snapshot_dir(stage)):
            write_text(target / name, OmegaConf.to_yaml(content))


def saved_overrides(folder: RunFolder, stage: str) -> list[str]:
    """The overrides that a stage was run with, as they were typed; none where it kept no configuration."""
    file = folder.snapshot_dir(stage) / _OVERRIDES_FILE
    return load_yaml(file, _as_typed) if file.is_file() else []


def _as_typed(content: ListConfig) -> list[str]:
    words: Any = OmegaConf.to_container(content, resolve=False)
    return [str(word) for word in words]
