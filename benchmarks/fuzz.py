"""Damaged files for every reader: each is read, or refused by our own error; prints one JSON line.

    python -m benchmarks.fuzz [--inputs 10000] [--seed 0] [--readers movielens_100k record ...]

Input 0 of a reader is its sound file, every other one a mutation (`fuzzing/mutations.py`) of one of its files, decided
by seed, reader and number: `--readers <name> --only <number>` repeats one, and shows its traceback. A reader runs in a
process of its own, so that one that never comes back, ends the process or takes all memory is a finding, too. Where the
answer to damage is to make the thing again (a record, the cache), that counts as refused. The exit code is 1 if
anything but `read` and `refused` happened.
"""

import argparse
import gc
import json
import logging
import multiprocessing
import os
import resource
import signal
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import torch

from benchmarks.fuzzing import data_readers, run_readers, teacher_readers
from benchmarks.fuzzing.mutations import mutate
from benchmarks.fuzzing.reader import Reader
from src.core.errors import UserError

READERS: dict[str, Reader] = {**data_readers.READERS, **run_readers.READERS, **teacher_readers.READERS}
SECONDS = 5.0  # of computing that one input may take
MEGABYTES = 1024  # that reading may add to the process
_PATIENCE = 60.0  # seconds until a process that waits, or does not hear its alarm, is ended


class _Late(BaseException):
    """The time of one input is over; no `except Exception` stops it."""


@dataclass
class Tally:
    """What became of a reader's inputs: counts, and an example of each kind of finding with the input's number."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, number: int, outcome: str, detail: str) -> None:
        self.counts[outcome] += 1
        if outcome not in ("read", "refused"):
            self.examples.setdefault(outcome, f"{number}: {detail}")

    def as_dict(self) -> dict[str, Any]:
        found = {"read": self.counts["read"], "refused": self.counts["refused"]}
        others = {name: count for name, count in self.counts.items() if name not in found}
        return {**found, **others, **({"examples": self.examples} if others else {})}


def damaged(name: str, reader: Reader, sound: dict[str, bytes], *, seed: int, number: int) -> tuple[str, bytes]:
    """The file that an input replaces, and what stands there then."""
    random = Random(f"{seed}/{name}/{number}")
    file = random.choice(reader.files)
    return file, sound[file] if number == 0 else mutate(file, sound[file], random)


def outcome_of(reader: Reader, folder: Path) -> tuple[str, str]:
    """`read`, `refused`, or the kind of what went wrong, and its message."""
    try:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        found = reader.read(folder)
        return ("refused", "") if found is None else ("read", "")
    except UserError as error:
        return "refused", str(error)
    except _Late:
        return "hang", f"more than {SECONDS} s"
    except (Exception, SystemExit) as error:
        return f"foreign {type(error).__name__}", str(error)[:300]
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of a library in Rust
            raise
        return "foreign PanicException", str(error)[:300]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _late(*_: Any) -> None:
    raise _Late


def _work(name: str, folder: Path, sound: dict[str, bytes], seed: int, numbers: range, results: Connection) -> None:
    """Read the inputs in a process of its own; ends early after one that took too much memory."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what libraries in C complain about
    os.chdir(folder)
    gc.freeze()  # transformers collects garbage for each file of weights: it need not look at what is there already
    signal.signal(signal.SIGPROF, _late)
    reader, size = READERS[name], int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 4 * MEGABYTES * 2**20, resource.RLIM_INFINITY))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in numbers:
        file, content = damaged(name, reader, sound, seed=seed, number=number)
        (folder / file).write_bytes(content)
        outcome, detail = outcome_of(reader, folder)
        (folder / file).write_bytes(sound[file])
        taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        if taken > MEGABYTES:
            results.send((number, "memory", f"{taken} MB"))
            return
        results.send((number, outcome, detail))


Outcome = tuple[int, str, str]  # an input's number, what became of it, and a message


def _outcomes(name: str, folder: Path, sound: dict[str, bytes], seed: int, count: int) -> Iterator[Outcome]:
    """Every input's outcome; a process that ended or hangs is replaced, and goes on behind its last input."""
    context, done = multiprocessing.get_context("fork"), 0
    while done < count:
        for file, content in sound.items():
            (folder / file).write_bytes(content)
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(name, folder, sound, seed, range(done, count), sender))
        process.start()
        sender.close()
        try:
            while done < count:
                if not receiver.poll(_PATIENCE):
                    process.kill()
                    yield done, "hang", "waits, or does not hear its alarm"
                    done += 1
                    break
                number, outcome, detail = receiver.recv()
                done = number + 1
                yield number, outcome, detail
        except EOFError:  # it took too much memory, or died
            process.join()
            if process.exitcode:
                yield done, "crash", f"the process ended with {process.exitcode}"
                done += 1
        process.join()
        receiver.close()


def fuzz(name: str, *, seed: int, count: int) -> Tally:
    """Give a reader so many inputs."""
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as given:
        folder = Path(given)
        READERS[name].make(folder)
        sound = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        assert READERS[name].read(folder) is not None, f"{name}: refuses its sound files"  # imports what takes seconds
        for number, outcome, detail in _outcomes(name, folder, sound, seed, count):
            tally.add(number, outcome, detail)
    return tally


def repeat(name: str, *, seed: int, number: int) -> None:
    """Read one input here, without any net."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as given:
        folder = Path(given)
        READERS[name].make(folder)
        sound = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        file, content = damaged(name, READERS[name], sound, seed=seed, number=number)
        (folder / file).write_bytes(content)
        print(file, len(content), content[:2000])
        try:
            print("read:", READERS[name].read(folder))
        except Exception:
            traceback.print_exc()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS), metavar="NAME")
    parser.add_argument("--only", type=int, help="repeat this input of the reader here")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)  # a process that was forked cannot use others
    if arguments.only is not None:
        for name in arguments.readers:
            repeat(name, seed=arguments.seed, number=arguments.only)
        return
    found = {name: fuzz(name, seed=arguments.seed, count=arguments.inputs).as_dict() for name in arguments.readers}
    print(json.dumps(found))
    if any(counts.keys() - {"read", "refused"} for counts in found.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
