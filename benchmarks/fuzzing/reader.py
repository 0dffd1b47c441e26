"""What the fuzzer knows of a reader."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Reader:
    """One reader of files.

    Attributes:
        make: writes sound files into an empty folder.
        files: those of them that are damaged, one at a time.
        read: reads and uses them; None where its answer to damage is not an error, such as "make it again".
    """

    make: Callable[[Path], None]
    files: tuple[str, ...]
    read: Callable[[Path], Any]
