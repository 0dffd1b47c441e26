"""MovieLens: what the reader returns, and the line that each kind of bad input is answered with."""

import gzip
import logging

import pytest
from raw_examples import MOVIES_1M, MOVIES_100K, RATINGS_1M, RATINGS_100K, needs, write

from src.core.data_utils import load_dataset
from src.core.datasets.base import SplitConfig
from src.core.datasets.movielens import RELEASES, MovielensConfig, clean_movie_title, read_movielens
from src.core.errors import UserError

LOGGER = logging.getLogger("test_movielens")


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
    log = read_movielens(write(tmp_path, **files), RELEASES[version])
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
    assert clean_movie_title(title) == expected


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
        read_movielens(folder, RELEASES["100k"])


def test_fields_missing_here_and_left_over_there(tmp_path):
    folder = write(tmp_path, u__data="1\t2\t3\t4\n1\t2\t3\n1\t2\t3\t4\t5\n", u__item=MOVIES_100K)
    with pytest.raises(UserError, match=r"u\.data:2: has 3 fields"):
        read_movielens(folder, RELEASES["100k"])


def test_a_movie_that_nobody_rated_may_have_any_number(tmp_path):
    movies = MOVIES_100K + 5000 * "1" + "|Film (1999)|x\n"
    assert read_movielens(write(tmp_path, u__data=RATINGS_100K, u__item=movies), RELEASES["100k"]).titles[5000 * "1"]


def test_malformed_movies(tmp_path):
    with pytest.raises(UserError, match=r"u\.item:1: has 1 fields, expected"):
        read_movielens(write(tmp_path, u__data=RATINGS_100K, u__item="10\n"), RELEASES["100k"])
    with pytest.raises(UserError, match=r"u\.item:3: item '10' occurs twice"):
        read_movielens(write(tmp_path, u__item=MOVIES_100K + "10|Again|x\n"), RELEASES["100k"])


def test_movie_without_title_gets_its_id(tmp_path, caplog):
    log = "".join(f"1\t{item}\t3\t{time}\n" for time, item in enumerate((10, 242, 5, 10)))
    cfg = MovielensConfig(min_user_inter=3, raw_dir=str(write(tmp_path, u__data=log, u__item=MOVIES_100K)))
    assert load_dataset(cfg, tmp_path / "data", LOGGER).titles == ["item 5", "The Matrix", "Kolya"]
    assert "1 of 3 items have no title" in caplog.text


def test_published_movielens_100k(tmp_path):
    folder = needs("ml-100k")
    dataset = load_dataset(MovielensConfig(raw_dir=str(folder)), tmp_path, LOGGER)
    assert (dataset.num_users, dataset.num_items) == (943, 1682)
    assert len(dataset.train) == 100_000 - 3 * 943
    assert len(set(dataset.titles)) == 1682
    temporal = MovielensConfig(raw_dir=str(folder), split=SplitConfig(method="temporal"))
    dataset = load_dataset(temporal, tmp_path, LOGGER)
    rows = 100_000 - 943
    assert [len(dataset.train), len(dataset.valid), len(dataset.test)] == [
        rows * 8 // 10,
        rows * 9 // 10 - rows * 8 // 10,
        rows - rows * 9 // 10,
    ]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8", "utf-8-sig"])
def test_titles_in_any_encoding_with_or_without_gzip(tmp_path, encoding):
    movies = "010|Café, The (1999)|x\n242|Kolya|x\n".encode(encoding)
    (tmp_path / "u.data.gz").write_bytes(gzip.compress(RATINGS_100K.encode(encoding)))
    (tmp_path / "u.item.gz").write_bytes(gzip.compress(movies))
    log = read_movielens(tmp_path, RELEASES["100k"])
    assert log.users.tolist() == [7, 7, 8]
    assert log.titles == {"10": "The Café", "242": "Kolya"}  # 010 is the 10 of the ratings
    assert log.notes == ("u.item.gz: took off the year or moved the article of 1 titles",)


@pytest.mark.parametrize("file", ["u.data", "u.item"])
def test_a_nul_is_refused_in_either_file(tmp_path, file):
    write(tmp_path, u__data=RATINGS_100K, u__item=MOVIES_100K)
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes() + b"8\x00\n")
    with pytest.raises(UserError, match=rf"{file}:[34]: holds a NUL character"):
        read_movielens(tmp_path, RELEASES["100k"])
