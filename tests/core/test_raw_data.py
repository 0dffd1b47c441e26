"""The readers of raw formats: what they return, and the line that each kind of bad input is answered with."""

import functools
import gzip
import hashlib
import http.server
import json
import logging
import os
import pickle
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from src.core import make_sample, raw_data
from src.core.data_utils import DatasetConfig, SplitConfig, load_dataset
from src.core.errors import UserError

LOGGER = logging.getLogger("test_raw_data")
ROOT = Path(__file__).parents[2]
SHARED = ROOT / os.environ.get("SHARED_DATASETS", "../shared/datasets")

RATINGS_100K = "7\t242\t3\t30\n7\t10\t5\t20\n8\t242\t1\t10\n"
MOVIES_100K = "10|Matrix, The (1999)|x||u|0\n242|Kolya (1996)|x||u|0\n"
RATINGS_1M = "7::242::3::30\n7::10::5::20\n8::242::1::10\n"
MOVIES_1M = "10::Matrix, The (1999)::Action\n242::Kolya (1996)::Drama|Comedy\n"


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content, encoding="latin-1")
    return folder


def needs(name: str) -> Path:
    if not (SHARED / name).is_dir():
        pytest.skip(f"SHARED_DATASETS has no {name}")
    return SHARED / name


# --- MovieLens ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "files"),
    [
        ("100k", {"u__data": RATINGS_100K, "u__item": MOVIES_100K}),
        ("1m", {"ratings__dat": RATINGS_1M, "movies__dat": MOVIES_1M}),
        (
            "1m",
            {
                "ratings__dat": RATINGS_1M.replace("\n", "\r\n"),
                "movies__dat": MOVIES_1M.replace("\n", "\r\n"),
            },
        ),
    ],
    ids=["100k", "1m", "1m with CRLF"],
)
def test_movielens(tmp_path, version, files):
    log = raw_data.read_movielens(write(tmp_path, **files), version)
    assert log.users.tolist() == [7, 7, 8]
    assert log.items.tolist() == [242, 10, 242]
    assert log.timestamps.tolist() == [30, 20, 10]
    assert log.titles == {"10": "The Matrix", "242": "Kolya"}


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("Matrix, The (1999)", "The Matrix"),
        ("Perfect World, A (1993)", "A Perfect World"),
        ("American in Paris, An (1951)", "An American in Paris"),
        ("Seventh Seal, The (Sjunde inseglet, Det) (1957)", "The Seventh Seal (Sjunde inseglet, Det)"),
        ("Good, The Bad and The Ugly, The (1966)", "The Good, The Bad and The Ugly"),
        ("Land Before Time III, The (1995) (V)", "The Land Before Time III"),
        ("2001: A Space Odyssey (1968)", "2001: A Space Odyssey"),
        ("1984 (1984)", "1984"),
        ("unknown", "unknown"),
    ],
)
def test_clean_movie_title(title, expected):
    assert raw_data.clean_movie_title(title) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("8\t242\t1", r"u\.data:3: has 3 fields, expected 4"),
        ("8\t242\t1\t10\t11", r"u\.data:3: has 5 fields, expected 4"),
        ("8\t242\t1\tnoon", r"u\.data:3: timestamp 'noon' is not an integer"),
        ("8\tx\t1\t10", r"u\.data:3: item 'x' is not an integer"),
        ("\t242\t1\t10", r"u\.data:3: user '' is not an integer"),
    ],
)
@pytest.mark.parametrize("last", [False, True])
def test_malformed_rating_names_its_line(tmp_path, line, message, last):
    more = "" if last else "9\t10\t1\t10\n"
    folder = write(tmp_path, u__data="7\t242\t3\t30\n7\t10\t5\t20\n" + line + "\n" + more, u__item=MOVIES_100K)
    with pytest.raises(UserError, match=message):
        raw_data.read_movielens(folder, "100k")


def test_fields_missing_here_and_left_over_there(tmp_path):
    folder = write(tmp_path, u__data="1\t2\t3\t4\n1\t2\t3\n1\t2\t3\t4\t5\n", u__item=MOVIES_100K)
    with pytest.raises(UserError, match=r"u\.data:2: has 3 fields"):
        raw_data.read_movielens(folder, "100k")


def test_malformed_movies(tmp_path):
    with pytest.raises(UserError, match=r"u\.item:1: has 1 fields, expected"):
        raw_data.read_movielens(write(tmp_path, u__data=RATINGS_100K, u__item="10\n"), "100k")
    with pytest.raises(UserError, match=r"u\.item:3: item '10' occurs twice"):
        raw_data.read_movielens(write(tmp_path, u__item=MOVIES_100K + "10|Again|x\n"), "100k")


def test_movie_without_title_gets_its_id(tmp_path, caplog):
    log = "".join(f"1\t{item}\t3\t{item}\n" for item in (10, 242, 5))
    cfg = DatasetConfig("movielens", min_user_inter=3, raw_dir=str(write(tmp_path, u__data=log, u__item=MOVIES_100K)))
    assert load_dataset(cfg, tmp_path / "data", LOGGER).titles == ["item 5", "The Matrix", "Kolya"]
    assert "1 of 3 items have no title" in caplog.text


# --- missing files and download -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cfg", "files"),
    [
        (DatasetConfig("sample"), "interactions.csv, items.csv"),
        (DatasetConfig("csv", interactions_file="a.tsv"), "a.tsv, items.csv"),
        (DatasetConfig("amazon_games"), "Video_Games_5.json, meta_Video_Games.json"),
        (
            DatasetConfig("lastfm", min_user_inter=0, split=SplitConfig("given")),
            "train_data.df, Val_data.df, Test_data.df, id2name.txt",
        ),
    ],
    ids=lambda value: value.name if isinstance(value, DatasetConfig) else "",
)
def test_missing_files_are_named_with_their_folder(tmp_path, cfg, files):
    with pytest.raises(UserError) as error:
        load_dataset(cfg, tmp_path, LOGGER)
    assert str(error.value).startswith(f"{tmp_path / 'raw' / cfg.name}: missing {files}; put them there")


def test_a_given_folder_is_never_fetched_into(tmp_path, monkeypatch):
    monkeypatch.setattr(raw_data, "fetch_movielens", None)  # calling it would fail
    cfg = DatasetConfig("movielens", raw_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"missing u\.data, u\.item; dataset\.raw_dir=.* must hold them"):
        load_dataset(cfg, tmp_path, LOGGER)


def test_empty_file_is_named(tmp_path):
    folder = write(tmp_path, u__data="", u__item=MOVIES_100K)
    with pytest.raises(UserError, match=r"u\.data: the file is empty"):
        load_dataset(DatasetConfig("movielens", raw_dir=str(folder)), tmp_path, LOGGER)


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
        **changes,
    }
    monkeypatch.setitem(raw_data.MOVIELENS, "100k", replace(raw_data.MOVIELENS["100k"], **source))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_missing_movielens_is_fetched_and_unpacked(site, tmp_path, monkeypatch):
    serve_movielens(site, monkeypatch)
    dataset = load_dataset(DatasetConfig("movielens", min_user_inter=3), tmp_path, LOGGER)
    assert dataset.titles == ["The Matrix", "Kolya"]
    assert sorted(path.name for path in (tmp_path / "raw" / "movielens").iterdir()) == ["u.data", "u.item"]


@pytest.mark.parametrize("changes", [{"md5": "0" * 32}, {"ratings": "u.absent"}], ids=["md5", "member"])
def test_a_wrong_archive_leaves_nothing(site, tmp_path, monkeypatch, changes):
    serve_movielens(site, monkeypatch, **changes)
    name = changes.get("ratings", "u.data")
    with pytest.raises(UserError, match=rf"could not fetch http.*; put {name} and u\.item into .*movielens"):
        load_dataset(DatasetConfig("movielens"), tmp_path, LOGGER)
    assert list((tmp_path / "raw" / "movielens").iterdir()) == []


def test_without_network_the_error_names_files_and_folder(site, tmp_path, monkeypatch):
    serve_movielens(site, monkeypatch, url="http://127.0.0.1:9/ml.zip")  # port 9: nobody listens
    with pytest.raises(
        UserError, match=r"put u\.data and u\.item into .*raw/movielens, or set dataset\.raw_dir"
    ) as error:
        load_dataset(DatasetConfig("movielens"), tmp_path, LOGGER)
    assert "\n" not in str(error.value)


# --- csv ----------------------------------------------------------------------------------------------------


ITEMS = 'item,title\na,First\nb,"Second, with comma"\n'


def read_csv(folder: Path, log: str, items: str = ITEMS, separator: str = ",", **names: str) -> raw_data.Interactions:
    write(folder, log__csv=log, items__csv=items)
    columns = {"user": "user", "item": "item", "timestamp": "timestamp", "title": "title", **names}
    return raw_data.read_csv(folder / "log.csv", folder / "items.csv", separator, **columns)


def test_csv_with_other_columns_and_separator(tmp_path):
    log = read_csv(
        tmp_path,
        "when;rating;who;what\n1.5;3;u1;a\n0;4;u2;b\n",
        "what;extra;name\na;;First\nb;;Second\n",
        ";",
        user="who",
        item="what",
        timestamp="when",
        title="name",
    )
    assert log.users.tolist() == ["u1", "u2"]
    assert log.items.tolist() == ["a", "b"]
    assert log.timestamps.tolist() == [1.5, 0.0]
    assert log.titles == {"a": "First", "b": "Second"}


def test_csv_keeps_ids_as_written_and_large_times_exact(tmp_path):
    log = read_csv(
        tmp_path,
        "user,item,timestamp\nNA,007,1600000000000000001\n01,a,1600000000000000002\n",
        ITEMS + "007,x\n",
    )
    assert log.users.tolist() == ["NA", "01"]
    assert log.items.tolist() == ["007", "a"]
    assert (log.timestamps - 1600000000000000000).tolist() == [1, 2]


def test_csv_with_byte_order_mark(tmp_path):
    write(tmp_path, items__csv=ITEMS)
    (tmp_path / "log.csv").write_text("user,item,timestamp\nu,a,1\n", encoding="utf-8-sig")
    log = raw_data.read_csv(tmp_path / "log.csv", tmp_path / "items.csv", ",", "user", "item", "timestamp", "title")
    assert log.users.tolist() == ["u"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("u,a,1\nu,b\n", r"log\.csv:3: has 2 fields, expected 3 \(user,item,timestamp\)"),
        ("u,a,1\nu,b,1,2\n", r"log\.csv:3: has 4 fields, expected 3"),
        ("u,a,1,2\nu,b,1,2\n", r"log\.csv:2: has 4 fields, expected 3"),
        ("u,a,1\n\nu,b,noon\n", r"log\.csv:4: timestamp 'noon' is not a number"),
        ("u,a,1\nu,b,\n", r"log\.csv:3: timestamp '' is not a number"),
        ("u,a,1\nu,b,nan\n", r"log\.csv:3: timestamp 'nan' is not a number"),
        ("u,a,1\n,b,1\n", r"log\.csv:3: the user is empty"),
        ("u,a,1\nu,,1\n", r"log\.csv:3: the item is empty"),
        ("u,a,1\nu,c,1\n", r"log\.csv:3: item 'c' has no entry in .*items\.csv"),
        ("", r"log\.csv: has no interactions"),
    ],
)
def test_malformed_log_names_its_line(tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        read_csv(tmp_path, "user,item,timestamp\n" + lines)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("item,title\na,x\nb,y\na,z\n", r"items\.csv:4: item 'a' occurs twice"),
        ("item,title\na,x\nb\n", r"items\.csv:3: has 1 fields, expected 2"),
        ("item,title\na,x, y\n", r"items\.csv:2: has 3 fields, expected 2 .* put quotes"),
        (
            "item,name\na,x\n",
            r"items\.csv:1: dataset\.columns\.title='title' is not a column; the file has item, name",
        ),
    ],
)
def test_malformed_titles_name_their_line(tmp_path, items, message):
    with pytest.raises(UserError, match=message):
        read_csv(tmp_path, "user,item,timestamp\nu,a,1\n", items)


def test_missing_column_names_the_setting(tmp_path):
    with pytest.raises(
        UserError,
        match=r"log\.csv:1: dataset\.columns\.timestamp='timestamp' is not a column; .* user, item, t",
    ):
        read_csv(tmp_path, "user,item,t\nu,a,1\n")


def test_wrong_encoding_names_its_line(tmp_path):
    write(tmp_path, log__csv="user,item,timestamp\nu,a,1\n", items__csv="item,title\nb,x\na,Café\n")
    with pytest.raises(UserError, match=r"items\.csv:3: not valid utf-8"):
        raw_data.read_csv(tmp_path / "log.csv", tmp_path / "items.csv", ",", "user", "item", "timestamp", "title")


# --- Amazon -------------------------------------------------------------------------------------------------


REVIEWS = [
    {"reviewerID": "A1", "asin": "B2", "unixReviewTime": 20, "reviewText": 'quoted "asin": "no"'},
    {"reviewerID": "A2", "asin": "B1", "unixReviewTime": 10},
]
PRODUCTS = [
    {"asin": "B1", "title": "Tom &amp; Jerry"},
    {"asin": "B2", "title": ""},
    {"asin": "B2", "title": "Second try"},
    {"asin": "B3", "title": "var aPageStart = (new Date()).getTime();"},
    {"asin": "B4"},
]


def json_lines(values: list) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


@pytest.mark.parametrize("zipped", [False, True])
def test_amazon(tmp_path, zipped):
    for name, values in ((raw_data.AMAZON_REVIEWS, REVIEWS), (raw_data.AMAZON_METADATA, PRODUCTS)):
        data = json_lines(values)
        (tmp_path / (name + zipped * ".gz")).write_bytes(gzip.compress(data) if zipped else data)
    log = raw_data.read_amazon_games(tmp_path)
    assert log.users.tolist() == ["A1", "A2"]
    assert log.items.tolist() == ["B2", "B1"]
    assert log.timestamps.tolist() == [20, 10]
    assert log.titles == {"B1": "Tom & Jerry", "B2": "Second try", "B3": "", "B4": ""}


@pytest.mark.parametrize(
    ("review", "message"),
    [
        (b'{"asin": "B1",\n', r"Video_Games_5\.json:3: not a line of JSON"),
        (b"[1]\n", r"Video_Games_5\.json:3: expected a JSON object, got \[1\]"),
        (
            b'{"asin": "B1", "unixReviewTime": 3}\n',
            r"Video_Games_5\.json:3: the field 'reviewerID' is missing",
        ),
        (
            b'{"asin": "B1", "unixReviewTime": "x"}\n',
            r"Video_Games_5\.json:3: unixReviewTime 'x' is not an integer",
        ),
        (b"\xff\n", r"Video_Games_5\.json:3: not a line of JSON"),
    ],
)
def test_malformed_review_names_its_line(tmp_path, review, message):
    (tmp_path / raw_data.AMAZON_REVIEWS).write_bytes(json_lines(REVIEWS) + review)
    (tmp_path / raw_data.AMAZON_METADATA).write_bytes(json_lines(PRODUCTS))
    with pytest.raises(UserError, match=message):
        raw_data.read_amazon_games(tmp_path)


def test_damaged_gzip_is_named(tmp_path):
    data = gzip.compress(json_lines(REVIEWS))
    (tmp_path / (raw_data.AMAZON_REVIEWS + ".gz")).write_bytes(data[: len(data) // 2])
    (tmp_path / raw_data.AMAZON_METADATA).write_bytes(json_lines(PRODUCTS))
    with pytest.raises(UserError, match=r"Video_Games_5\.json\.gz: damaged after line \d"):
        raw_data.read_amazon_games(tmp_path)


# --- LastFM -------------------------------------------------------------------------------------------------


def lastfm_folder(folder: Path, **changes: list) -> Path:
    """Three items, padding id 3; the second row is an empty history as the published files write it."""
    frame = {"seq": [[0, 1, 3], [3, 3, 3], [2, 0, 1]], "len_seq": [2, 1, 3], "next": [2, 0, 0], **changes}
    for name in raw_data.LASTFM_FILES[:3]:
        pd.DataFrame(frame).to_pickle(folder / name)
    (folder / "id2name.txt").write_text("0::Zero\n1::One::1\n2::Zwei ä\n", encoding="utf-8")
    return folder


def lastfm_config(folder: Path) -> DatasetConfig:
    return DatasetConfig("lastfm", 10, 0, SplitConfig("given"), raw_dir=str(folder))


def test_lastfm_rows(tmp_path):
    dataset = load_dataset(lastfm_config(lastfm_folder(tmp_path)), tmp_path / "data", LOGGER)
    assert dataset.titles == ["Zero", "One::1", "Zwei ä"]
    for number, rows in enumerate((dataset.train, dataset.valid, dataset.test)):
        assert [rows.history(i).tolist() for i in range(2)] == [[0, 1], [2, 0, 1]]
        assert rows.targets.tolist() == [2, 0]
        assert rows.user.tolist() == [2 * number, 2 * number + 1]
    assert (dataset.num_users, dataset.pad_id) == (6, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"next": [2, 0, 3]}, r"train_data\.df: row 2: item 3 is not in id2name\.txt \(ids 0 to 2\)"),
        ({"seq": [[0, 9, 3], [3, 3, 3], [2, 0, 1]]}, r"train_data\.df: row 0: item 9 is not in id2name"),
        ({"len_seq": [2, 1, 4]}, r"train_data\.df: row 2: len_seq 4 is not between 0 and 3"),
        ({"seq": [[0], [3, 3], [2]]}, r"train_data\.df: seq must hold lists of ids of one length"),
        ({"len_seq": [0, 0, 0]}, r"train_data\.df: has no row with a history"),
    ],
)
def test_malformed_windows_are_named(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        raw_data.read_lastfm(lastfm_folder(tmp_path, **changes))


def test_missing_column_of_windows(tmp_path):
    folder = lastfm_folder(tmp_path)
    pd.DataFrame({"seq": [[0]], "len_seq": [1]}).to_pickle(folder / "Val_data.df")
    with pytest.raises(UserError, match=r"Val_data\.df: the column 'next' is missing; it has seq, len_seq"):
        raw_data.read_lastfm(folder)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("0::a\nb\n", r"id2name\.txt:2: expected id::name, got 'b'"),
        ("0::a\n0::b\n", r"id2name\.txt:2: item 0 occurs twice"),
        ("0::a\n2::b\n", r"id2name\.txt: ids must be 0 to 1 without a gap, but 1 is missing"),
    ],
)
def test_malformed_names_are_named(tmp_path, names, message):
    folder = lastfm_folder(tmp_path)
    (folder / "id2name.txt").write_text(names)
    with pytest.raises(UserError, match=message):
        raw_data.read_lastfm(folder)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickled_frame_reads_as_pandas_does(tmp_path, protocol):
    frame = pd.DataFrame({"a": [1, 2, 3], "b": [[1], [2], [3]], "c": [0.5, 1.5, 2.5], "d": [7, 8, 9], "e": list("xyz")})
    frame.to_pickle(tmp_path / "frame.df", protocol=protocol)
    columns = raw_data.read_pickled_frame(tmp_path / "frame.df")
    assert columns == {name: frame[name].tolist() for name in frame}


class Malicious:
    def __init__(self, function, *args) -> None:
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "name"),
    [(os.system, r"(posix|nt)\.system"), (eval, r"builtins\.eval"), (np.load, r"numpy\.load")],
)
def test_malicious_pickle_is_refused_and_not_run(tmp_path, function, name):
    marker = tmp_path / "ran"
    code = {os.system: f"touch {marker}", eval: f"open({str(marker)!r}, 'w')", np.load: str(marker)}[function]
    folder = lastfm_folder(tmp_path)
    (folder / "Test_data.df").write_bytes(pickle.dumps({"_mgr": Malicious(function, code)}))
    with pytest.raises(UserError, match=rf"Test_data\.df: the pickle names {name}, .* not executed"):
        raw_data.read_lastfm(folder)
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"no pickle", pickle.dumps([1, 2]), pickle.dumps({"a": 1})[:-3]])
def test_damaged_pickle_is_named(tmp_path, content):
    folder = lastfm_folder(tmp_path)
    (folder / "train_data.df").write_bytes(content)
    with pytest.raises(UserError, match=r"train_data\.df: not a readable pickle of a pandas table") as error:
        raw_data.read_lastfm(folder)
    assert "\n" not in str(error.value)


# --- published data and the sample --------------------------------------------------------------------------


def test_published_movielens_100k(tmp_path):
    folder = needs("ml-100k")
    dataset = load_dataset(DatasetConfig("movielens", raw_dir=str(folder)), tmp_path, LOGGER)
    assert (dataset.num_users, dataset.num_items) == (943, 1682)
    assert len(dataset.train) == 100_000 - 3 * 943
    assert len(set(dataset.titles)) == 1682
    temporal = DatasetConfig("movielens", raw_dir=str(folder), split=SplitConfig("temporal"))
    dataset = load_dataset(temporal, tmp_path, LOGGER)
    rows = 100_000 - 943
    assert [len(dataset.train), len(dataset.valid), len(dataset.test)] == [
        rows * 8 // 10,
        rows * 9 // 10 - rows * 8 // 10,
        rows - rows * 9 // 10,
    ]


def test_published_lastfm(tmp_path):
    dataset = load_dataset(lastfm_config(needs("lastfm")), tmp_path, LOGGER)
    assert dataset.num_items == 4606
    assert (len(dataset.train), len(dataset.valid), len(dataset.test)) == (50_800 - 976, 122, 122)
    assert (dataset.train.pos - dataset.train.start).max() == 10
    assert sum(dataset.train.pos - dataset.train.start >= 3) == 47_872  # what iLoRA trains on


def test_sample_files_are_what_the_generator_writes(tmp_path):
    make_sample.write_sample(tmp_path)
    for name in ("interactions.csv", "items.csv"):
        assert (tmp_path / name).read_bytes() == (ROOT / "data" / "raw" / "sample" / name).read_bytes()
