"""From a section of the Hydra configuration to the checked dataclass behind it."""

from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from src.core.errors import UserError

Settings = TypeVar("Settings")


def parse_section(schema: type[Settings], section: DictConfig, name: str) -> Settings:
    """Check a section's keys, types and ranges against a dataclass and build it.

    Raises:
        UserError: an unknown key, a value of another type, a reference to nothing, or a value that the dataclass
            refuses.
    """
    try:
        values = OmegaConf.to_container(section, resolve=True)
        merged = OmegaConf.merge(OmegaConf.structured(schema), values)
        built: Any = OmegaConf.to_object(merged)
    except ConfigKeyError as error:
        raise UserError(f"{name}.{error.full_key or error.key}: unknown key") from error
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        key = (error.full_key or "").removeprefix(f"{name}.")  # from the root where a reference fails
        raise UserError(f"{name}.{key}={_value(section, key)}: {reason}") from error
    return built


def _value(section: DictConfig, key: str) -> Any:
    return OmegaConf.select(section, key, throw_on_resolution_failure=False) if key else None
