"""Hydra reads the YAMLs of `conf/` once for each choice of them: that takes far longer than to change values."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

CONF = Path(__file__).resolve().parents[2] / "conf"

_list_defaults = config_loader_impl.create_defaults_list
_put_together = ConfigLoaderImpl._compose_config_from_defaults_list
_lists: dict[tuple, config_loader_impl.DefaultsList] = {}
_configs: dict[int, DictConfig] = {}  # by the identity of a list in `_lists`


def remember_compositions() -> None:
    """From now on, in this process."""
    config_loader_impl.create_defaults_list = _list_defaults_once
    ConfigLoaderImpl._compose_config_from_defaults_list = _put_together_once


@contextmanager
def from_files() -> Iterator[None]:
    """Here Hydra remembers nothing."""
    config_loader_impl.create_defaults_list = _list_defaults
    ConfigLoaderImpl._compose_config_from_defaults_list = _put_together
    try:
        yield
    finally:
        remember_compositions()


def _list_defaults_once(repo, config_name, overrides_list: list[Override], prepend_hydra, skip_missing):
    """The files that an equal choice has led to, and the values of this call."""
    choices = [override for override in overrides_list if not _is_value(override)]
    sources = [source.path for source in repo.get_sources()]
    arguments = {"config_name": config_name, "prepend_hydra": prepend_hydra, "skip_missing": skip_missing}
    if any(Path(path).is_absolute() and Path(path) != CONF for path in sources):  # YAMLs that a test writes
        return _list_defaults(repo=repo, overrides_list=overrides_list, **arguments)
    key = (*(override.input_line for override in choices), None, *sources, *arguments.values())
    if key not in _lists:
        _lists[key] = _list_defaults(repo=repo, overrides_list=choices, **arguments)
    found = _lists[key]
    lines = {override.input_line for override in found.config_overrides}
    values = [override for override in overrides_list if _is_value(override) or override.input_line in lines]
    return replace(found, config_overrides=values)


def _is_value(override: Override) -> bool:
    """`student.lr=0.1`, but nothing that adds or removes a key, nor several values to sweep."""
    line = override.input_line or ""
    plain = re.match(r"\w+\.[\w.]+=", line) is not None and not line.startswith("hydra.searchpath")
    return plain and not override.is_sweep_override()


def _put_together_once(self: ConfigLoaderImpl, defaults: list[ResultDefault], repo) -> DictConfig:
    if not any(defaults is found.defaults for found in _lists.values()):
        return _put_together(self, defaults, repo)
    if id(defaults) not in _configs:
        _configs[id(defaults)] = _put_together(self, defaults, repo)
    return deepcopy(_configs[id(defaults)])
