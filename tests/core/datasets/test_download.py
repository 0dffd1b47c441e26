"""Missing raw files: fetched from a server on this machine where they are published, else named."""

import functools
import hashlib
import http.server
import logging
import threading
import zipfile
from contextlib import contextmanager
from dataclasses import replace

import pytest
from raw_examples import MOVIES_100K, RATINGS_100K, write

from src.core.data_utils import load_dataset
from src.core.datasets import download, sources
from src.core.datasets.amazon import AmazonConfig
from src.core.datasets.base import DatasetConfig
from src.core.datasets.csv_log import CsvConfig
from src.core.datasets.download import Archive
from src.core.datasets.lastfm import LastfmConfig
from src.core.datasets.movielens import RELEASES, MovielensConfig
from src.core.datasets.sample import SampleConfig
from src.core.errors import UserError

LOGGER = logging.getLogger("test_download")


@pytest.mark.parametrize(
    ("config", "files"),
    [
        (SampleConfig(), "interactions.csv, items.csv"),
        (CsvConfig(interactions_file="a.tsv"), "a.tsv, items.csv"),
        (AmazonConfig(release=2018, interactions_file="Beauty_5.json"), "Beauty_5.json, meta_Beauty.json"),
        (LastfmConfig(), "train_data.df, Val_data.df, Test_data.df, id2name.txt"),
    ],
    ids=lambda value: value.name if isinstance(value, DatasetConfig) else "",
)
def test_missing_files_are_named_with_their_folder(tmp_path, config, files):
    with pytest.raises(UserError) as error:
        load_dataset(config, tmp_path, LOGGER)
    assert str(error.value).startswith(f"{tmp_path / 'raw' / config.name}: missing {files}; put them there")


def test_a_given_folder_is_never_fetched_into(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "fetch_missing", None)  # calling it would fail
    config = MovielensConfig(raw_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"missing u\.data, u\.item; dataset\.raw_dir=.* must hold them"):
        load_dataset(config, tmp_path, LOGGER)


def test_empty_file_is_named(tmp_path):
    folder = write(tmp_path, u__data="", u__item=MOVIES_100K)
    with pytest.raises(UserError, match=r"u\.data: the file is empty"):
        load_dataset(MovielensConfig(raw_dir=str(folder)), tmp_path, LOGGER)


@pytest.fixture
def site(tmp_path):
    """A web server on this machine whose folder is ``site.folder``."""
    folder = tmp_path / "site"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    server.folder = folder
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def serve_movielens(site, monkeypatch, **changes) -> None:
    archive = site.folder / "ml.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("ml-100k/u.data", RATINGS_100K * 2)
        file.writestr("ml-100k/u.item", MOVIES_100K)
        file.writestr("ml-100k/other.txt", "not wanted")
    source = {
        "url": f"http://127.0.0.1:{site.server_address[1]}/ml.zip",
        "md5": hashlib.md5(archive.read_bytes()).hexdigest(),
        **{key: value for key, value in changes.items() if key in ("url", "md5")},
    }
    names = {key: value for key, value in changes.items() if key not in source}
    monkeypatch.setitem(RELEASES, "100k", replace(RELEASES["100k"], archive=Archive(**source), **names))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_missing_movielens_is_fetched_and_unpacked(site, tmp_path, monkeypatch):
    serve_movielens(site, monkeypatch)
    dataset = load_dataset(MovielensConfig(min_user_inter=3, duplicates="keep"), tmp_path, LOGGER)
    assert dataset.titles == ["The Matrix", "Kolya"]
    assert sorted(path.name for path in (tmp_path / "raw" / "movielens").iterdir()) == ["u.data", "u.item"]


@pytest.mark.parametrize("changes", [{"md5": "0" * 32}, {"ratings": "u.absent"}], ids=["md5", "member"])
def test_a_wrong_archive_leaves_nothing(site, tmp_path, monkeypatch, changes):
    serve_movielens(site, monkeypatch, **changes)
    name = changes.get("ratings", "u.data")
    with pytest.raises(UserError, match=rf"could not fetch http.*; put {name} and u\.item into .*movielens"):
        load_dataset(MovielensConfig(), tmp_path, LOGGER)
    assert list((tmp_path / "raw" / "movielens").iterdir()) == []


def test_without_network_the_error_names_files_and_folder(site, tmp_path, monkeypatch):
    serve_movielens(site, monkeypatch, url="http://127.0.0.1:9/ml.zip")  # port 9: nobody listens
    with pytest.raises(
        UserError, match=r"put u\.data and u\.item into .*raw/movielens, or set dataset\.raw_dir"
    ) as error:
        load_dataset(MovielensConfig(), tmp_path, LOGGER)
    assert "\n" not in str(error.value)


def test_who_waited_for_another_process_to_fetch_takes_its_files(tmp_path, monkeypatch):
    files = [tmp_path / "movielens" / name for name in ("u.data", "u.item")]

    @contextmanager
    def fetched_meanwhile(folder, notify):
        assert folder == tmp_path  # not the folder of the files, which may hold nothing else
        write(files[0].parent, u__data=RATINGS_100K, u__item=MOVIES_100K)
        yield

    monkeypatch.setattr(download, "locked", fetched_meanwhile)
    monkeypatch.setattr(download, "_fetch", None)  # calling it would fail
    download.fetch_missing(RELEASES["100k"].archive, files, LOGGER)
    assert files[0].read_text() == RATINGS_100K
