"""From a section of the Hydra configuration to the frozen, checked dataclass behind it, and what its values decide."""

import io
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from src.core.errors import UserError

Settings = TypeVar("Settings")
_MAX_YAML = 1 << 18  # bytes: the composed configuration has some ten thousand
_MAX_LEVELS, _MAX_REFERENCES = 30, 20  # a reference to two references to two, and so on, grows, too

# Metadata of a field of a settings dataclass: what its value decides. A field without any decides the RESULT: another
# value makes another model. The others are told apart so that a change of them repeats no more than it must.
RESULT = "result"
NOTHING = {"decides": "nothing"}  # no number: where files lie, how often state is saved, how memory is used
UNDERWAY = {"decides": "underway"}  # a result, but an interrupted training may go on with another value
EVALUATION = {"decides": "evaluation"}  # what is measured of a trained model
EXPORT = {"decides": "export"}  # what a trained teacher writes for students
IN_STUDENT = {"decides": "student"}  # of a distillation: what the student's settings say, as it is really trained


def key_of(name: str) -> dict[str, str]:
    """Metadata of a field whose key in the YAML cannot be its name, such as `lambda`."""
    return {"key": name}


def parse_section(schema: type[Settings], section: DictConfig | dict[str, Any], name: str) -> Settings:
    """Check a section's keys, types and ranges against a dataclass and build it.

    Raises:
        UserError: an unknown key, a value of another type, a reference to nothing, or a value that the dataclass
            refuses.
    """
    keys = _renamed(schema)
    kind: Any = schema  # classes can be hashed, whatever their objects can
    try:
        values = _plain(section)
        given = {keys.get(key, key): value for key, value in values.items()}
        for key, attribute in keys.items():
            if attribute in values:
                raise UserError(f"{name}.{attribute}: unknown key; did you mean {name}.{key}?")
        built: Any = OmegaConf.to_object(OmegaConf.merge(_template(kind), given))
    except ConfigKeyError as error:
        raise UserError(unknown_key(schema, name, str(error.full_key or error.key))) from error
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        attribute = (error.full_key or "").removeprefix(f"{name}.")  # from the root where a reference fails
        key = {attribute: key for key, attribute in keys.items()}.get(attribute, attribute)
        raise UserError(f"{name}.{key}={_value(section, key)}: {reason}") from error
    return built


def parse_choice(
    schemas: Mapping[str, type], section: DictConfig | dict[str, Any], name: str, by: tuple[str, ...] = ("name",)
) -> Any:
    """`parse_section` with the schema that a key of the section chooses: the first of `by` that is there.

    Raises:
        UserError: as `parse_section`, or nothing of that name.
    """
    key = next((key for key in by if key in section), by[0])
    choice = section.get(key)
    if not isinstance(choice, str) or choice not in schemas:
        raise UserError(f"{name}.{key}={choice!r}: must be one of {', '.join(schemas)}")
    return parse_section(schemas[choice], section, name)


def unknown_key(schema: type, name: str, key: str) -> str:
    """The message for a key, dotted from the section `name`, that its schema does not have."""
    *path, last = key.split(".")
    inner: Any = schema
    for part in path:
        kinds = get_type_hints(inner).get(part)
        inner = next((kind for kind in (kinds, *get_args(kinds)) if is_dataclass(kind)), None)
        if inner is None:
            return f"{name}.{key}: unknown key"
    allowed = [entry.metadata.get("key", entry.name) for entry in fields(inner)]
    close = get_close_matches(last, allowed, n=1)
    hint = f"did you mean {'.'.join([name, *path, close[0]])}? " if close else ""
    return f"{name}.{key}: unknown key; {hint}allowed there: {', '.join(allowed)}"


def _plain(section: DictConfig | dict[str, Any]) -> dict[str, Any]:
    """The section's values without OmegaConf, references resolved."""
    values = section if isinstance(section, dict) else OmegaConf.to_container(section, resolve=True)
    if not isinstance(values, dict):
        raise UserError(f"{values!r} stands where a section with keys is expected")
    return {str(key): value for key, value in values.items()}


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys of a YAML file, references (`${...}`) resolved.

    Raises:
        UserError: it cannot be read, or has no keys.
    """

    def resolved(content: Any) -> dict[str, Any]:
        if OmegaConf.to_yaml(content).count("${") > _MAX_REFERENCES:
            raise ValueError(f"more than {_MAX_REFERENCES} references (${{...}})")
        return _plain(content)

    return load_yaml(path, resolved)


def load_yaml(path: Path, convert: Callable[[Any], Any]) -> Any:
    """What `convert` makes of OmegaConf's reading of a YAML file.

    Raises:
        UserError: it cannot be read, is larger than configurations are, or holds what `convert` refuses.
    """
    try:
        text = path.read_bytes()[: _MAX_YAML + 1].decode()
        _require_small(text)
        return convert(OmegaConf.load(io.StringIO(text)))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # the loader raises nearly anything for a damaged file
        raise UserError(f"{path}: cannot be read as YAML: {' '.join(str(error).split()):.300}") from None


def _require_small(text: str) -> None:
    """Refuse what would grow: a node that is referred to (`*a`) ten times, by one that is, and so on."""
    if len(text) > _MAX_YAML:
        raise ValueError(f"more than {_MAX_YAML} characters")
    level = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or level > _MAX_LEVELS:
            raise ValueError(f"an alias (*name), or more than {_MAX_LEVELS} levels")


def _renamed(schema: type) -> dict[str, str]:
    """Attribute by key, of the fields whose keys differ from their names."""
    return {entry.metadata["key"]: entry.name for entry in fields(schema) if "key" in entry.metadata}


@cache
def _template(schema: type) -> DictConfig:
    """The configuration of a dataclass with its defaults, which a merge copies."""
    return _unlocked(OmegaConf.structured(schema))


def _unlocked(node: DictConfig) -> DictConfig:
    """OmegaConf makes the configuration of a frozen dataclass read-only, inner ones by flags of their own."""
    OmegaConf.set_readonly(node, None)
    if not (node._is_missing() or node._is_none()):
        for key in node:
            inner = node._get_node(key)
            if isinstance(inner, DictConfig):
                _unlocked(inner)
    return node


def _value(section: DictConfig | dict[str, Any], key: str) -> Any:
    if not key or isinstance(section, dict):
        return section.get(key) if key else None
    return OmegaConf.select(section, key, throw_on_resolution_failure=False)


def flat_settings(settings: Any, prefix: str, decides: Collection[str] = (RESULT, "underway")) -> dict[str, Any]:
    """Values of a settings dataclass by dotted key, those whose metadata say that they decide one of `decides`.

    An inner dataclass takes on what its field decides.

    >>> from src.core.metrics import MetricsConfig
    >>> flat_settings(MetricsConfig(ks=[5, 10], monitor="ndcg@10"), "metrics")
    {'metrics.monitor': 'ndcg@10', 'metrics.history': 'shown'}
    >>> flat_settings(MetricsConfig(ks=[5, 10], monitor="ndcg@10"), "metrics", ["evaluation"])
    {'metrics.ks': [5, 10]}
    """
    return {key: value for key, value, kind in _leaves(settings, prefix, RESULT) if kind in decides}


def _leaves(settings: Any, prefix: str, inherited: str) -> list[tuple[str, Any, str]]:
    found: list[tuple[str, Any, str]] = []
    for entry in fields(settings):
        key = f"{prefix}.{entry.metadata.get('key', entry.name)}"
        value, kind = getattr(settings, entry.name), entry.metadata.get("decides", inherited)
        found += _leaves(value, key, kind) if is_dataclass(value) else [(key, value, kind)]
    return found
