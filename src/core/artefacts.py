"""What was made from what: one record for every thing that is made, and the lock under which it is written.

A record is a JSON file that is written when the making begins and again when it ends. `status` is the one place that
tells from it whether the thing is absent, being made, interrupted or complete, and whether it was made from what is
wanted now. Skipping, resuming, refusing, finding and naming differences all ask it.
"""

import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from src.core.errors import UserError
from src.core.files import LOCK_FILE, remove_unfinished, sha256_file, write_json
from src.core.foreign.typed import read_typed
from src.core.git_info import git_commit

_SHOWN = 5  # differences that a message names
_MISSING = "nothing"
_PROBED = 0.2  # seconds: `is_locked` holds a free lock for a moment, too, and that is no reason to refuse


class State(StrEnum):
    """Where the making of a thing stands."""

    ABSENT = "absent"
    BEING_MADE = "being made"
    INTERRUPTED = "interrupted"
    COMPLETE = "complete"


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A process that makes something: its number, its machine, and when it began (UTC, ISO 8601)."""

    pid: int
    host: str
    since: str

    @classmethod
    def this_process(cls) -> "Owner":
        return cls(pid=os.getpid(), host=socket.gethostname(), since=_now())

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


@dataclass(frozen=True, kw_only=True)
class Record:
    """The record of one thing.

    Attributes:
        artefact: what it is, such as `baseline`.
        made_from: all that decides its content, flat: settings by dotted key, the data set's fingerprint, hashes of
            the files that were read.
        commit: of the code that made it; noted, no reason to make it again.
        owner: the process that makes it, or made it last.
        completed: when it was complete (UTC, ISO 8601); None until then.
        value: its best validation value, where it has one.
        files: SHA-256 of each file it consists of, as it was written, by path relative to the record's base folder
            (an absolute path for files elsewhere).
        error: how the making failed, where it did.
    """

    artefact: str
    made_from: dict[str, Any]
    commit: str
    owner: Owner
    completed: str | None = None
    value: float | None = None
    files: dict[str, str] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Status:
    """What `status` found.

    Attributes:
        record: None where the state is ABSENT because there is none, or none that can be read.
        changes: what differs between what it was made from and what is wanted, in words; empty where nothing does.
        changed: the keys of `changes`.
        why: why the state is ABSENT or INTERRUPTED although there is a record.
    """

    state: State
    record: Record | None = None
    changes: str = ""
    changed: tuple[str, ...] = ()
    why: str = ""

    @property
    def is_current(self) -> bool:
        """Complete, and made from what is wanted."""
        return self.state is State.COMPLETE and not self.changed


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """Something that is made: where its record lies, and the folder that its files are relative to.

    Attributes:
        name: what it is; the same in the record.
        record_file: JSON.
        base: folder that the files of the record are relative to, and that is locked while it is made.
    """

    name: str
    record_file: Path
    base: Path

    def status(self, wanted: Mapping[str, Any] | None = None, *, verify: bool = False) -> Status:
        """Where the making stands.

        Args:
            wanted: what it would be made from now; None asks for the state alone.
            verify: compare the hashes of its files, too, not only whether they are there.
        """
        record, why = _read_record(self.record_file)
        if record is None:
            return Status(state=State.ABSENT, why=why)
        changed = () if wanted is None else differing_keys(record.made_from, wanted)
        changes = "" if wanted is None else differences(record.made_from, wanted)
        state, why = State.COMPLETE, self._damage(record, verify=verify)
        if record.completed is None:
            held = is_locked(self.base)
            state, why = (
                (State.BEING_MADE, str(held)) if held else (State.INTERRUPTED, record.error or "it was cut off")
            )
        elif why:
            state = State.ABSENT
        return Status(state=state, record=record, changes=changes, changed=changed, why=why)

    def begin(self, made_from: dict[str, Any]) -> None:
        """Note that this process makes it now; what was complete before counts no more."""
        record = Record(artefact=self.name, made_from=made_from, commit=git_commit(), owner=Owner.this_process())
        write_json(self.record_file, asdict(record))

    def complete(self, value: float | None = None, files: Mapping[str, str] | None = None) -> None:
        """Note that it is whole: `files` as in `Record`."""
        self._update(completed=_now(), value=value, files=dict(files or {}), error=None)

    def note_error(self, error: str | None) -> None:
        """Note how the last attempt to make it failed, or that it did not."""
        self._update(error=error)

    def outdate(self, why: str) -> None:
        """Note that what it was made from is no more: it counts as interrupted. Without a record nothing is to note."""
        if self.status().record is not None:
            self._update(completed=None, error=why)

    def _update(self, **changes: Any) -> None:
        record, _ = _read_record(self.record_file)
        if record is None:
            raise UserError(f"{self.record_file}: has vanished or was changed while its stage ran; run the stage again")
        write_json(self.record_file, asdict(replace(record, **changes)))

    def _damage(self, record: Record, *, verify: bool) -> str:
        """Which of its files is gone or was replaced, in words; empty where none is."""
        for name, digest in record.files.items():
            path = self.base / name  # an absolute name stays as it is
            if not os.path.isfile(path):  # False, too, for what can be no path
                return f"{path} is gone"
            if verify and sha256_file(path) != digest:
                return f"{path} is no longer what was written"
        return ""


def _read_record(path: Path) -> tuple[Record | None, str]:
    """The record, or None and why there is none: a damaged one counts as none, the thing is made again."""
    if not path.is_file():
        return None, ""
    try:
        record = read_typed(path, Record, "its stage is run again")
        if record.completed is not None:
            datetime.fromisoformat(record.completed)
    except (UserError, ValueError) as error:
        return None, f"its record {path} is damaged ({error})"
    return record, ""


# --- differences --------------------------------------------------------------------------------------------


def differing_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys that only one of the two has, or that differ; in `before`'s order, then `now`'s."""
    missing = object()
    return tuple(key for key in {**before, **now} if before.get(key, missing) != now.get(key, missing))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs, as `student.lr changed from 0.001 to 0.003`; empty where nothing does."""
    keys = differing_keys(before, now)
    shown = [f"{key} changed from {_short(before, key)} to {_short(now, key)}" for key in keys[:_SHOWN]]
    return "; ".join(shown + ([f"{len(keys) - _SHOWN} more changed"] if len(keys) > _SHOWN else []))


def unlike(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """What differs between two things, as `student.name caser / sasrec, general.seed 5 / 42`."""
    keys = differing_keys(one, other)
    shown = [f"{key} {_short(one, key)} / {_short(other, key)}" for key in keys[:_SHOWN]]
    return ", ".join(shown + ([f"{len(keys) - _SHOWN} more"] if len(keys) > _SHOWN else []))


def _short(values: Mapping[str, Any], key: str) -> Any:
    """A value for a message; a hash by its first digits."""
    value = values.get(key, _MISSING)
    return value[:12] if isinstance(value, str) and len(value) == 64 else value


# --- locks --------------------------------------------------------------------------------------------------


@contextmanager
def locked(folder: Path, *, notify: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold a folder's lock. The operating system frees it when the process ends, however it ends.

    What a killed owner has left half-written (`*.part`) is removed. Who holds the lock already gets it again.

    Args:
        notify: told once who holds it, if somebody does, and then the lock is waited for; None refuses instead.

    Raises:
        UserError: another process holds it and `notify` is None, or the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK_FILE, is_singleton=True)
        is_first = not lock.is_locked
        _acquire(lock, folder, notify)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({error.strerror or error}); choose another folder") from error
    with lock:  # taken once more, so that an error below frees it
        lock.release()
        if is_first:
            _sign(folder)
            remove_unfinished(folder)
        yield


def _acquire(lock: BaseFileLock, folder: Path, notify: Callable[[str], None] | None) -> None:
    try:
        lock.acquire(timeout=_PROBED)
        return
    except Timeout:
        holder = _holder(folder)
    if notify is None:
        raise UserError(f"{folder}: in use by {holder}; wait for it to end, or choose another folder")
    notify(f"{folder}: in use by {holder}: waiting")
    lock.acquire()


def _sign(folder: Path) -> None:
    """Write who holds the lock into it; for messages only, so a full disk does no harm."""
    with suppress(OSError):
        (folder / LOCK_FILE).write_text(json.dumps(asdict(Owner.this_process())), encoding="utf-8")


def is_locked(folder: Path) -> Owner | str | None:
    """Who holds a folder's lock; None if nobody does, or this process."""
    if not (folder / LOCK_FILE).is_file():
        return None
    lock = FileLock(folder / LOCK_FILE, is_singleton=True)
    try:
        with lock.acquire(timeout=0):
            return None
    except Timeout:
        return _holder(folder)
    except OSError:  # a folder that can only be read: nobody writes there
        return None


def _holder(folder: Path) -> Owner | str:
    try:
        return read_typed(folder / LOCK_FILE, Owner, "")
    except UserError:  # between taking the lock and writing the name
        return "another process"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
