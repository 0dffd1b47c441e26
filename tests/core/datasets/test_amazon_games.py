"""Amazon Video Games: what the reader returns, and the line that each kind of bad input is answered with."""

import gzip
import json

import pytest

from src.core.datasets.amazon import Amazon, AmazonConfig
from src.core.errors import UserError

REVIEWS_FILE, METADATA_FILE = "Video_Games_5.json", "meta_Video_Games.json"
GAMES = AmazonConfig(name="amazon_games", category="Video_Games", release=2018, interactions_file=REVIEWS_FILE)

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
    for name, values in ((REVIEWS_FILE, REVIEWS), (METADATA_FILE, PRODUCTS)):
        data = json_lines(values)
        (tmp_path / (name + zipped * ".gz")).write_bytes(gzip.compress(data) if zipped else data)
    log = Amazon().read(GAMES, tmp_path)
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
    (tmp_path / REVIEWS_FILE).write_bytes(json_lines(REVIEWS) + review)
    (tmp_path / METADATA_FILE).write_bytes(json_lines(PRODUCTS))
    with pytest.raises(UserError, match=message):
        Amazon().read(GAMES, tmp_path)


def test_damaged_gzip_is_named(tmp_path):
    data = gzip.compress(json_lines(REVIEWS))
    (tmp_path / (REVIEWS_FILE + ".gz")).write_bytes(data[: len(data) // 2])
    (tmp_path / METADATA_FILE).write_bytes(json_lines(PRODUCTS))
    with pytest.raises(UserError, match=r"Video_Games_5\.json\.gz: damaged after line \d"):
        Amazon().read(GAMES, tmp_path)
