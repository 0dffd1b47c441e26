"""Any error as one readable line."""

import errno
import re
import shlex
from collections.abc import Sequence
from difflib import get_close_matches

from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf

from src.core.errors import UserError
from src.exp.settings import known_keys, takes_new_keys

_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)
_PLUGINS = "The plugins for sweeps are an optional group: bash cmd/install.sh installs it"


def one_line(error: BaseException) -> str:
    """The error as one line: what was wrong, and where it can be told, what is allowed."""
    if isinstance(error, UserError):
        return str(error)
    text = str(error)
    if isinstance(error, OverrideParseException):
        return _not_an_override(error.override, " ".join(text.splitlines()[:-1]))
    if ambiguous := re.match(r"Ambiguous value for argument '(.*)'$", text, re.MULTILINE):
        return _ambiguous(ambiguous[1])
    if optional := re.match(r"Could not override '.*'\. No match in the defaults list\.\n.* use (\+(\S+?)=.*)", text):
        return f"{optional[1][1:]}: {optional[2]} is chosen by a plus, {optional[1]}"
    if unknown := re.match(r"Could not override '([\w.]+)'", text):
        return _unknown_hydra_key(unknown[1]) if unknown[1].startswith("hydra.") else _unknown_key(unknown[1])
    if isinstance(error, MissingConfigException) and (absent := _absent_choice(error)):
        return absent
    if isinstance(error, OSError) and error.errno in _OF_DISKS:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; make room, mend it or choose another folder, and start the same command again"
    first = [line.strip() for line in text.splitlines() if line.strip()]
    if type(error).__module__.startswith(("hydra", "omegaconf")):
        details = [str(cause).splitlines()[0] for cause in _causes(error) if str(cause)]
        return " ".join([*first, *(detail for detail in details if detail not in " ".join(first))])
    where = f"{type(error).__name__}: {first[0] if first else ''}"
    return f"{where} (not a known mistake in the input; HYDRA_FULL_ERROR=1 shows the stack trace)"


# --- what Hydra cannot read ---------------------------------------------------------------------------------


def require_no_dashes(words: Sequence[str]) -> None:
    """Raises a UserError for a setting with the dashes that other programs want, `--student.lr=1`."""
    for word in words:
        dashed = re.fullmatch(r"--?([\w./@]+)=(.*)", word)
        if dashed and dashed[1] not in _HYDRA_OPTIONS:
            plain = shlex.quote(word.lstrip("-"))
            raise UserError(f"{word}: a setting is written without dashes; did you mean {plain}?")


_HYDRA_OPTIONS = ("cfg", "package", "info", "config-path", "config-name", "config-dir", "experimental-rerun")


def _not_an_override(override: str, reason: str) -> str:
    key, equals, value = override.partition("=")
    if not equals or not re.fullmatch(r"[+~]*[\w./@:-]+", key):
        meant = re.fullmatch(r"([+~]*[\w./@-]+)\s*[\s:=]\s*(\S.*)", override)
        hint = f"; did you mean {shlex.quote(f'{meant[1]}={meant[2]}')}?" if meant else ""
        return f"{override}: is no setting, which is written key=value without blanks round the equals sign{hint}"
    text = quoted(key, value)
    if not _is_readable(text):
        return f"{override}: {reason}"
    unclosed = "close its bracket, or for a text " if value[:1] in ("[", "{") else ""
    return f"{override}: its value has characters that Hydra reads as its own; {unclosed}write {shlex.quote(text)}"


def _ambiguous(override: str) -> str:
    key, _, value = override.partition("=")
    return (
        f"{override}: commas separate the values of a sweep, which needs --multirun; write "
        f"{shlex.quote(f'{key}=[{value}]')} for a list, {shlex.quote(quoted(key, value))} for one text"
    )


def quoted(key: str, value: str) -> str:
    r"""An override whose value Hydra takes as one text.

    >>> quoted("a", "b (1)"), quoted("a", '"')
    ('a="b (1)"', 'a="\\""')
    """
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', value)  # a backslash means one only before a quote
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f'{key}="{escaped}{chr(92) * trailing}"'


def _is_readable(override: str) -> bool:
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True


# --- what there is not --------------------------------------------------------------------------------------


def _absent_choice(error: MissingConfigException) -> str | None:
    """A choice that a group does not have."""
    found = re.search(r"Could not find '(.+)/([^/']*)'", str(error))
    if found is None or not error.options:
        return None
    group, choice = found.groups()
    plugins = f". {_PLUGINS}" if group in ("hydra/launcher", "hydra/sweeper") else ""
    return f"{group}={choice}: there is none of that name; {_meant(f'{group}=', choice, error.options)}" + (
        f"available: {', '.join(error.options)}{plugins}"
    )


def _unknown_key(name: str) -> str:
    section, _, key = name.rpartition(".")
    allowed = known_keys(section)
    if key in allowed:
        group = name.split(".")[0]
        return f"{name}: the chosen {group} has no such key, only another choice of `{group}=` has it"
    hint = _meant(f"{section}." if section else "", key, allowed)
    if takes_new_keys(section):
        return f"{name}: {section} has no {key} yet; +{name}=... adds it"
    if not allowed:
        return f"{name}: unknown key; there is no section {section}{_meant_section(section, key)}"
    return f"{name}: unknown key; {hint}allowed there: {', '.join(allowed)}"


def _unknown_hydra_key(name: str) -> str:
    """A key of Hydra itself, `hydra.run.dirr`."""
    section, _, key = name.rpartition(".")
    if section in ("hydra.launcher", "hydra.sweeper"):
        return f"{name}: the chosen {section.replace('.', '/')} has no such key; --cfg hydra shows what it has"
    known = OmegaConf.select(OmegaConf.create({"hydra": OmegaConf.structured(HydraConf)}), section)
    if not OmegaConf.is_dict(known):
        return _unknown_hydra_key(section)
    allowed = [str(name) for name in known]
    return f"{name}: unknown key; {_meant(f'{section}.', key, allowed)}allowed there: {', '.join(allowed)}"


def _meant_section(section: str, key: str) -> str:
    """The key in the section that is spelt most alike, where that has it."""
    parent, _, last = section.rpartition(".")
    path = f"{parent}." if parent else ""
    known = [f"{path}{name}" for name in known_keys(parent)]
    close = [name for name in get_close_matches(f"{path}{last}", known) if key in known_keys(name)]
    return f"; did you mean {close[0]}.{key}?" if close else ""


def _meant(before: str, word: str, known: Sequence[str]) -> str:
    close = get_close_matches(word, known, n=1)
    return f"did you mean {before}{close[0]}? " if close else ""


def _causes(error: BaseException) -> list[BaseException]:
    causes = []
    while (error.__cause__) is not None:
        error = error.__cause__
        causes.append(error)
    return causes
