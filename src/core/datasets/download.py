"""Fetching a data set's archive from where it is published."""

import logging
import os
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from src.core.artefacts import locked
from src.core.datasets.base import shorten
from src.core.errors import UserError

_TIMEOUT_SECONDS = 10


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A published zip file and its MD5."""

    url: str
    md5: str


def fetch_missing(archive: Archive, files: list[Path], logger: logging.Logger) -> None:
    """Put the files, where one of them is missing, into their folder, from an archive that is fetched and verified.

    Of two processes that miss them, one fetches and the other waits for it.

    Args:
        files: of one folder; their names are looked for in all folders of the archive.

    Raises:
        UserError: they cannot be had; it names the files and the folder to put them in.
    """
    folder = files[0].parent
    if all(path.is_file() for path in files):
        return
    with locked(folder.parent, notify=logger.info):
        if not all(path.is_file() for path in files):  # else whoever held the lock has fetched them
            logger.info("fetching %s into %s", archive.url, folder)
            _fetch(archive, files, folder)


def _fetch(archive: Archive, files: list[Path], folder: Path) -> None:
    import pooch  # only here: a run that has its data does not need it

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary:
        try:
            fetched = pooch.retrieve(
                archive.url,
                known_hash=f"md5:{archive.md5}",
                path=temporary,
                fname="archive.zip",
                downloader=pooch.HTTPDownloader(progressbar=True, timeout=_TIMEOUT_SECONDS),
            )
            unpacked = [_unpack(Path(fetched), path.name) for path in files]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(
                f"could not fetch {archive.url} ({type(error).__name__}: {shorten(str(error))}); "
                f"put {' and '.join(path.name for path in files)} into {folder}, "
                "or set dataset.raw_dir to a folder that has them"
            ) from error
        for path in unpacked:
            os.replace(path, folder / path.name)


def _unpack(archive: Path, name: str) -> Path:
    """Extract the file called `name`, in whatever folder of the archive, beside the archive."""
    target = archive.with_name(name)
    with zipfile.ZipFile(archive) as files:
        member = next((entry for entry in files.namelist() if entry.rsplit("/", 1)[-1] == name), name)
        with files.open(member) as source, target.open("wb") as destination:
            shutil.copyfileobj(source, destination)
    return target
