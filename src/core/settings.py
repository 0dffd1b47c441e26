"""From a section of the Hydra configuration to the checked dataclass behind it."""

import difflib
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from src.core.errors import UserError

Settings = TypeVar("Settings")


def parse_section(schema: type[Settings], section: DictConfig, name: str) -> Settings:
    """Check a section's keys, types and ranges against a dataclass and build it.

    Raises:
        UserError: an unknown key, a value of another type, or one that the dataclass refuses.
    """
    OmegaConf.resolve(section)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), section)
        built: Any = OmegaConf.to_object(merged)
    except ConfigKeyError as error:
        raise UserError(f"{name}.{error.full_key or error.key}: unknown key") from error
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{name}.{error.full_key}={_value(section, error.full_key)}: {reason}") from error
    return built


def _value(section: DictConfig, key: str | None) -> Any:
    return OmegaConf.select(section, key) if key else None


def suggestion(key: str, known: list[str]) -> str:
    """`; did you mean ...?` with the closest known keys, or nothing."""
    close = difflib.get_close_matches(key, known, n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""
