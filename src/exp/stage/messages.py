"""Any error as one readable line."""

import errno
import re
from difflib import get_close_matches

from src.core.errors import UserError
from src.exp.settings import known_keys, takes_new_keys

_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)
_PLUGINS = "The plugins for sweeps are an optional group: bash cmd/install.sh installs it"


def one_line(error: BaseException) -> str:
    """The error as one line: what was wrong, and where it can be told, what is allowed."""
    if isinstance(error, UserError):
        return str(error)
    if unknown := re.match(r"Could not override '([\w.]+)'", str(error)):
        return _unknown_key(unknown[1])
    if isinstance(error, OSError) and error.errno in _OF_DISKS:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; make room, mend it or choose another folder, and start the same command again"
    first = [line.strip() for line in str(error).splitlines() if line.strip()]
    if type(error).__module__.startswith(("hydra", "omegaconf")):
        details = [str(cause).splitlines()[0] for cause in _causes(error) if str(cause)]
        if re.search(r"Could not find 'hydra/(launcher|sweeper)/", str(error)):
            details.append(_PLUGINS)
        return " ".join([*first, *(detail for detail in details if detail not in " ".join(first))])
    where = f"{type(error).__name__}: {first[0] if first else ''}"
    return f"{where} (not a known mistake in the input; HYDRA_FULL_ERROR=1 shows the stack trace)"


def _unknown_key(name: str) -> str:
    section, _, key = name.rpartition(".")
    allowed = known_keys(section)
    if key in allowed:
        group = name.split(".")[0]
        return f"{name}: the chosen {group} has no such key, only another choice of `{group}=` has it"
    close = get_close_matches(key, allowed, n=1)
    hint = f"did you mean {'.'.join(filter(None, [section, *close]))}? " if close else ""
    if takes_new_keys(section):
        return f"{name}: {section} has no {key} yet; +{name}=... adds it"
    if not allowed:
        return f"{name}: unknown key; there is no section {section}"
    return f"{name}: unknown key; {hint}allowed there: {', '.join(allowed)}"


def _causes(error: BaseException) -> list[BaseException]:
    causes = []
    while (error.__cause__) is not None:
        error = error.__cause__
        causes.append(error)
    return causes
