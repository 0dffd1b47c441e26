"""Zip archives of strangers: what they announce is compared with the file before a byte is unpacked."""

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_MAX_LIST_BYTES: Final = 1 << 24  # of the list of members: some hundred thousand
_PIECE: Final = 1 << 20
_MAX_RATIO: Final = 1032  # of deflate: 258 bytes from 2 bits


class DamagedArchive(ValueError):
    """The file is no zip archive, or one that no sound program would write."""


@dataclass(frozen=True)
class Archive:
    """An open zip archive.

    Attributes:
        sizes: name of a member -> its bytes when unpacked, by its own account: no more than the compressed bytes can
            become, and if stored, all together no more than the file.
    """

    sizes: dict[str, int]
    _file: zipfile.ZipFile

    def size(self, name: str, max_bytes: int) -> int:
        """How long a member is.

        Raises:
            DamagedArchive: no such member, or one of more than `max_bytes`.
        """
        size = self.sizes.get(name)
        if size is None:
            raise DamagedArchive(f"it has no member {name!r:.80}")
        if size > max_bytes:
            raise DamagedArchive(f"its member {name!r:.80} has {size} bytes, at most {max_bytes} are expected")
        return size

    def read(self, name: str, max_bytes: int) -> bytes:
        """The content of a member, checked against its checksum.

        Raises:
            DamagedArchive: no such member, one of more than `max_bytes`, or damaged.
        """
        content = bytearray(self.size(name, max_bytes))
        self.read_into(name, memoryview(content))
        return bytes(content)

    def read_into(self, name: str, target: memoryview) -> None:
        """As `read`, into memory of exactly the member's size."""
        size, done = len(target), 0
        if self.size(name, size) != size:
            raise DamagedArchive(f"its member {name!r:.80} has {self.sizes[name]} bytes, {size} are expected")
        with _damage_named(), self._file.open(name) as member:
            while piece := member.read(min(_PIECE, size - done)):
                target[done : done + len(piece)] = piece
                done += len(piece)
            if done != size or member.read(1):  # the end is where the checksum is looked at
                raise DamagedArchive(f"its member {name!r:.80} ends after {done} of {size} bytes")


@contextmanager
def open_archive(path: Path, *, compressed: bool) -> Iterator[Archive]:
    """Open a zip archive and check its list of members.

    Args:
        compressed: whether members may be deflated; else each is stored as it is.

    Raises:
        DamagedArchive: it is none, or its members overlap, are encrypted or packed otherwise, or occur twice.
    """
    with _InPieces(io.FileIO(path)) as file:
        with _damage_named():
            archive = zipfile.ZipFile(file)
        yield Archive(_checked_sizes(archive, path.stat().st_size, compressed), archive)


class _InPieces(io.BufferedReader):
    """A file of which nobody can ask for gigabytes at once: `zipfile` reads as much as a header announces."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_LIST_BYTES:
            raise DamagedArchive(f"it announces a list of members of {size} bytes")
        return super().read(_MAX_LIST_BYTES if size is None or size < 0 else size)


def _checked_sizes(archive: zipfile.ZipFile, file_size: int, compressed: bool) -> dict[str, int]:
    allowed = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED} if compressed else {zipfile.ZIP_STORED}
    sizes: dict[str, int] = {}
    packed = 0
    for member in archive.infolist():
        packed += member.compress_size
        if member.compress_type not in allowed or member.flag_bits & 1:
            raise DamagedArchive(f"its member {member.filename!r:.80} is packed in a way that is not expected here")
        ratio = _MAX_RATIO if member.compress_type == zipfile.ZIP_DEFLATED else 1
        if packed > file_size or member.file_size > ratio * member.compress_size:
            raise DamagedArchive(
                f"its member {member.filename!r:.80} announces {member.file_size} bytes, more than the file can hold"
            )
        if member.filename in sizes:
            raise DamagedArchive(f"its member {member.filename!r:.80} occurs twice")
        sizes[member.filename] = member.file_size
    return sizes


@contextmanager
def _damage_named() -> Iterator[None]:
    try:
        yield
    except DamagedArchive:
        raise
    except Exception as error:  # zipfile and zlib raise nearly anything for a damaged file
        raise DamagedArchive(f"a damaged zip archive ({type(error).__name__}: {error})"[:200]) from None
