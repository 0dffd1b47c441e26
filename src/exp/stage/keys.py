"""What every key of the configuration means: the comments in `conf/`, for `--help` and for docs/keys.md."""

import re
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from src.core.git_info import PROJECT_ROOT
from src.exp.settings import schemas

CONF = PROJECT_ROOT / "conf"
_LINE = re.compile(
    r"(?P<indent> *)(?P<key>\w+):(?P<value>(?:[^#\"']|\"[^\"]*\"|'[^']*'|(?<!\s)#)*)(?:(?<=\s)# *(?P<comment>.*))?"
)
_WIDTH = 44  # of the column in which comments begin, where the line before them is shorter


def comments(choices: Mapping[str, str], *, others: bool = False) -> dict[str, str]:
    """The comment behind each key, by dotted key, in the files that these choices of groups read.

    Args:
        others: whether what they leave open is taken from the groups' other files.
    """
    files = [("", CONF / "config.yaml")]
    for group, choice in choices.items():
        chosen = _chain(CONF / group, choice)
        rest = [path for path in sorted((CONF / group).glob("*.yaml")) if path not in chosen] if others else []
        files += [(group, path) for path in (*chosen, *rest)]
    if others:
        files += [("teacher.prompt", path) for path in _chain(CONF / "teacher" / "prompt", "default")]
    found: dict[str, str] = {}
    for group, file in files:
        for key, comment in _comments_of(file, group).items():
            found.setdefault(key, comment)
    return found


def _chain(folder: Path, choice: str) -> list[Path]:
    """A choice's file, and those that it builds on."""
    path = folder / f"{choice}.yaml"
    if not path.is_file():
        return []
    content: Any = OmegaConf.load(path)
    below = [name for name in content.get("defaults", []) if isinstance(name, str) and name != "_self_"]
    return [path, *(file for name in below for file in _chain(folder, name))]


@cache
def _comments_of(file: Path, group: str) -> dict[str, str]:
    path: list[tuple[int, str]] = []
    found: dict[str, str] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        indent = len(match["indent"])
        path = [*((i, key) for i, key in path if i < indent), (indent, match["key"])]
        if match["comment"]:
            found[".".join([*([group] if group else []), *(key for _, key in path)])] = match["comment"].strip()
    return found


# --- --help -------------------------------------------------------------------------------------------------


def help_text(words: list[str]) -> str:
    """The configuration that these overrides compose, with the comments of `conf/` behind its keys."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        given = [word for word in words if not word.startswith("-")]
        composed = compose("config", overrides=given, return_hydra_config=True)
    config = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    choices = composed.hydra.runtime.choices
    groups = {name: _choices(name) for name in sorted(path.name for path in CONF.iterdir() if path.is_dir())}
    return "\n".join(
        [
            "Any key below may be set by key=value, any group by group=choice; -m runs a sweep, key=a,b.",
            "",
            *(f"  {name + '=':12} {' | '.join(choices)}" for name, choices in groups.items() if name != "hydra"),
            "",
            _annotated(OmegaConf.to_yaml(config), comments({g: c for g, c in choices.items() if g in config})),
            "docs/configuration.md and docs/keys.md say more; `bash cmd/quickstart.sh` shows it all at work.",
        ]
    )


def _choices(group: str) -> list[str]:
    return [path.stem for path in sorted((CONF / group).glob("*.yaml"))]


def _annotated(text: str, told: Mapping[str, str]) -> str:
    """YAML with each key's comment behind it."""
    path: list[tuple[int, str]] = []
    lines = []
    for line in text.splitlines():
        match = re.match(r"(?P<indent> *)(?P<key>\w+):", line)
        comment = ""
        if match:
            indent = len(match["indent"])
            path = [*((i, key) for i, key in path if i < indent), (indent, match["key"])]
            comment = told.get(".".join(key for _, key in path), "")
        lines.append(f"{line:{_WIDTH}}  # {comment}" if comment else line)
    return "\n".join(lines) + "\n"


# --- docs/keys.md -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    """A key of the configuration, dotted; its default as YAML has it; what it means."""

    name: str
    default: str
    meaning: str


def keys_of(section: str, schemas: list[type]) -> list[Key]:
    """The keys of a section with the schemas that it may have."""
    found: dict[str, Key] = {}
    for schema in schemas:
        for key in _keys(schema, section):
            found.setdefault(key.name, key)
    return list(found.values())


def _keys(schema: Any, prefix: str) -> list[Key]:
    told, hints, found = _attributes(schema), typing.get_type_hints(schema), []
    for entry in fields(schema):
        name = f"{prefix}.{entry.metadata.get('key', entry.name)}"
        hint = hints[entry.name]
        inner = next((kind for kind in (hint, *typing.get_args(hint)) if is_dataclass(kind)), None)
        if inner is not None and typing.get_origin(hint) is not dict:
            found += _keys(inner, name)
            continue
        own = _every_comment().get(name) or _every_comment().get(name.replace("teacher.recommender.", "student."), "")
        found.append(Key(name, _default(entry), max(own, told.get(entry.name, ""), key=len)))
    return found


@cache
def _every_comment() -> dict[str, str]:
    groups = {"dataset": "csv", "teacher": "ilora", "student": "sasrec", "distill": "dllm2rec", "active": "uncertainty"}
    rest = {path.name: "" for path in CONF.iterdir() if path.is_dir() and path.name not in ("hydra", "experiment")}
    return comments(groups | {name: "" for name in rest if name not in groups}, others=True)


def _default(entry: Any) -> str:
    """A field's default as one types it; "" where the YAML has to give one."""
    value = entry.default_factory() if entry.default_factory is not MISSING else entry.default
    if value is MISSING:
        return ""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _attributes(schema: type) -> dict[str, str]:
    """What the docstrings of a dataclass and of those it inherits from say of its attributes."""
    found: dict[str, str] = {}
    for kind in reversed(schema.__mro__):
        _, _, section = (kind.__doc__ or "").partition("Attributes:\n")
        section = re.split(r"\n\s*\n|\n\s*Raises:", section)[0]
        for part in re.split(r"\n(?=        \S)|; (?=\w+: )", section):
            names, colon, text = part.strip().partition(": ")
            if colon and re.fullmatch(r"\w+(, \w+)*", names):
                found |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return found


def keys_page(sections: Mapping[str, list[type]]) -> str:
    """docs/keys.md: a table for each section, by the schemas that it may have."""
    lines = [
        "# Every key",
        "",
        "[README](../README.md) · [by group](configuration.md)",
        "",
        "Generated from the settings' schemas and the comments in `conf/`; a test keeps it so. Where a section has",
        "several schemas (`dataset`, `student`, `active`), not every choice has every key. A choice may set another",
        "value than the default here, which is what a key left out means: `--help` shows what a command has.",
    ]
    for section, kinds in sections.items():
        lines += ["", f"## {section}", "", "| key | default | meaning |", "|---|---|---|"]
        lines += [
            f"| `{key.name}` | {f'`{key.default}`' if key.default else ''} | {_cell(key.meaning)} |"
            for key in keys_of(section, kinds)
        ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Text of ours in a cell of Markdown, its code spans kept."""
    parts = re.split(r"(`[^`]*`)", text.removesuffix(".").replace("|", "\\|"))
    return "".join(p if p.startswith("`") else p.replace("<", "&lt;").replace("*", "\\*") for p in parts)


if __name__ == "__main__":  # python -m src.exp.stage.keys > docs/keys.md
    print(keys_page(schemas()), end="")
