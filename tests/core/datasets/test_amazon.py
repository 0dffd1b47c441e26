"""Amazon Reviews: what the reader returns of each release, and the line that bad input is answered with."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

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
        (b"\xff\n", r"Video_Games_5\.json:3: not valid UTF-8 text .*; save the file as UTF-8"),
        *(
            (
                b'{"reviewerID": "A1", "asin": "B1", "unixReviewTime": %s}\n' % time,
                rf"Video_Games_5\.json:3: unixReviewTime .*{shown}.* is not an integer of 64 bits",
            )
            for time, shown in (
                (b"Infinity", "inf"),
                (b"NaN", "nan"),
                (b"1e300", "1e"),
                (b"1.5", "1.5"),
                (b"100000000000000000000", "1000"),
                (b"true", "True"),
                (b"null", "None"),
                (b"[" * 50 + b"]" * 50, "a list"),
            )
        ),
        *(
            (
                b'{"reviewerID": %s, "asin": "B1", "unixReviewTime": 1}\n' % user,
                r"Video_Games_5\.json:3: reviewerID .* is no id",
            )
            for user in (b"null", b'""', b"{}", b"1.5", b"true", b'"a\\u0000b"', b'"\\ud800"')
        ),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", r"Video_Games_5\.json:3: nested too deep"),
        (b'{"a": ' + b"9" * 5000 + b"}\n", r"Video_Games_5\.json:3: not a line of JSON"),
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


# --- the layouts of the releases ----------------------------------------------------------------------------

LITERALS = """{'asin': 'B1', 'related': {'also_bought': ['B9', "it's"], 'n': (1, 2)}, 'title': "Tom &amp; 'Jerry'"}
{'title': 'Caf\\xe9\\n', 'price': 1.5, 'asin': 'B2'}
"""
LINES_2018 = """{"asin": "B1", "title": "Tom &amp; 'Jerry'", "rank": []}
{"asin": "B2", "title": "Caf\\u00e9\\n"}
"""
LINES_2023 = LINES_2018.replace('"asin"', '"parent_asin"')
OLD_REVIEWS = """{"reviewerID": "A1", "asin": "B2", "unixReviewTime": 20}
{"reviewerID": "A2", "asin": "B1", "unixReviewTime": 10}
"""
NEW_REVIEWS = """{"user_id": "A1", "asin": "X", "parent_asin": "B2", "timestamp": 20, "rating": 1.0}
{"user_id": "A2", "asin": "Y", "parent_asin": "B1", "timestamp": 10, "rating": 1.0}
"""
LAYOUTS = {
    "reviews_Pet_Supplies_5.json": (2014, OLD_REVIEWS, LITERALS),
    "reviews_Pet_Supplies.json": (2014, OLD_REVIEWS, LITERALS),
    "ratings_Pet_Supplies.csv": (2014, "A1,B2,5.0,20\nA2,B1,1.0,10\n", LITERALS),
    "Pet_Supplies_5.json": (2018, OLD_REVIEWS, LINES_2018),
    "Pet_Supplies.json": (2018, OLD_REVIEWS, LINES_2018),
    "Pet_Supplies.csv": (2018, "B2,A1,5.0,20\nB1,A2,1.0,10\n", LINES_2018),
    "Pet_Supplies.jsonl": (2023, NEW_REVIEWS, LINES_2023),
    "Pet_Supplies.csv of 2023": (
        2023,
        "user_id,parent_asin,rating,timestamp\nA1,B2,5.0,20\nA2,B1,1.0,10\n",
        LINES_2023,
    ),
}
PETS = AmazonConfig(name="pets", category="Pet_Supplies")


def write_layout(folder: Path, layout: str, zipped: bool = False) -> None:
    release, interactions, metadata = LAYOUTS[layout]
    names = layout.split(" ")[0], "meta_Pet_Supplies.json" + (release == 2023) * "l"
    for name, text in zip(names, (interactions, metadata), strict=True):
        data = text.encode()
        (folder / (name + zipped * ".gz")).write_bytes(gzip.compress(data) if zipped else data)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_recognised_and_read_alike(tmp_path, layout, zipped):
    write_layout(tmp_path, layout, zipped)
    log = Amazon().read(PETS, tmp_path)
    assert (log.users.tolist(), log.items.tolist(), log.timestamps.tolist()) == (["A1", "A2"], ["B2", "B1"], [20, 10])
    assert log.titles == {"B1": "Tom & 'Jerry'", "B2": "Café\n"}
    assert log.notes == (
        f"meta_Pet_Supplies.json{'l' * ('2023' in layout or layout.endswith('l'))}"
        f"{'.gz' * zipped}: took HTML out of 1 titles",
    )
    assert Amazon().read(replace(PETS, release=LAYOUTS[layout][0]), tmp_path).titles == log.titles


def test_two_layouts_in_one_folder_are_named_and_either_can_be_chosen(tmp_path):
    for layout in ("Pet_Supplies_5.json", "Pet_Supplies.jsonl"):
        write_layout(tmp_path, layout)
    both = (
        r"may be Pet_Supplies_5\.json with meta_Pet_Supplies\.json \(2018\) and Pet_Supplies\.jsonl with .* \(2023\); "
    )
    with pytest.raises(UserError, match=both + r"choose by dataset\.release or dataset\.interactions_file"):
        Amazon().files(PETS, tmp_path)
    assert Amazon().files(replace(PETS, release=2023), tmp_path)[0].name == "Pet_Supplies.jsonl"
    assert Amazon().files(replace(PETS, interactions_file="Pet_Supplies_5.json"), tmp_path)[1].suffix == ".json"


def test_the_metadata_tell_whose_ratings_they_are(tmp_path):
    write_layout(tmp_path, "Pet_Supplies.csv of 2023")
    assert Amazon().files(PETS, tmp_path)[1].name == "meta_Pet_Supplies.jsonl"
    (tmp_path / "meta_Pet_Supplies.jsonl").unlink()
    with pytest.raises(UserError, match=r"\(2018\) and Pet_Supplies\.csv with meta_Pet_Supplies\.jsonl \(2023\)"):
        Amazon().files(PETS, tmp_path)


def test_nothing_there_names_what_was_looked_for(tmp_path):
    with pytest.raises(
        UserError,
        match=r"no reviews of dataset\.category='Pet_Supplies'; looked for reviews_Pet_Supplies_5\.json or "
        r"reviews_Pet_Supplies\.json or ratings_Pet_Supplies\.csv with meta_Pet_Supplies\.json \(2014\); .*; "
        r"Pet_Supplies\.jsonl or Pet_Supplies\.csv with meta_Pet_Supplies\.jsonl \(2023\), gzipped or not",
    ):
        Amazon().files(PETS, tmp_path)


def test_metadata_without_titles_are_refused(tmp_path):
    write_layout(tmp_path, "Pet_Supplies_5.json")
    (tmp_path / "meta_Pet_Supplies.json").write_text('{"asin": "B1", "price": 3}\n{"asin": "B7", "title": "Another"}\n')
    with pytest.raises(
        UserError, match=r"meta_Pet_Supplies\.json: has no title for any product of Pet_Supplies_5\.json"
    ):
        Amazon().read(PETS, tmp_path)


def test_titles_that_are_no_text_are_dropped_and_counted(tmp_path):
    write_layout(tmp_path, "Pet_Supplies_5.json")
    titles = ['["a"]', "null", "{}", "NaN", '"getTime()"', "1984", r'"\ud83d\ude00"', r'"x\ud83d"']
    lines = [f'{{"asin": "B{i}", "title": {title}}}\n' for i, title in enumerate(titles, start=-5)]
    (tmp_path / "meta_Pet_Supplies.json").write_text("".join(lines))
    log = Amazon().read(PETS, tmp_path)
    assert list(log.titles.values()) == ["", "", "", "", "", "1984", "😀", "x�"]
    assert log.notes == (
        "meta_Pet_Supplies.json: replaced half characters in 1 titles",
        "meta_Pet_Supplies.json: dropped 3 titles that are no text, or nothing but HTML or a piece of script",
    )


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ('<span class=\\"a-size-base\\">Robot &amp;amp; Friends</span>', "Robot & Friends"),
        ("Line<br/>break", "Line break"),
        ("&lt;b&gt;Bold&lt;/b&gt;", "Bold"),
        ("Puzzle <b>Box</b>", "Puzzle Box"),
        ("<img src=x>", ""),
        ("\\n\\n  ", ""),
        ("I <3 <Import> a < b > c", "I <3 <Import> a < b > c"),
        ("<!-- hidden -->Shown", "Shown"),
        pytest.param("<!--" * 200_000, "<!--" * 200_000, id="in one pass"),
    ],
)
def test_titles_are_the_text_that_their_html_shows(tmp_path, title, expected):
    write_layout(tmp_path, "Pet_Supplies_5.json")
    (tmp_path / "meta_Pet_Supplies.json").write_text(f'{{"asin": "B9", "title": "{title}"}}\n{LINES_2018}')
    assert Amazon().read(PETS, tmp_path).titles["B9"] == expected


def test_a_mark_is_no_part_of_the_first_line_and_a_nul_names_its_own(tmp_path):
    write_layout(tmp_path, "Pet_Supplies_5.json")
    log = (tmp_path / "Pet_Supplies_5.json").read_bytes()
    (tmp_path / "Pet_Supplies_5.json").write_bytes(b"\xef\xbb\xbf" + log)
    assert Amazon().read(PETS, tmp_path).users.tolist() == ["A1", "A2"]
    (tmp_path / "Pet_Supplies_5.json").write_bytes(log + b"\0")
    with pytest.raises(UserError, match=rf"Pet_Supplies_5\.json:{len(log.splitlines()) + 1}: holds a NUL character"):
        Amazon().read(PETS, tmp_path)
    (tmp_path / "Pet_Supplies_5.json").write_bytes(log.decode().encode("utf-16"))
    with pytest.raises(UserError, match=r"Pet_Supplies_5\.json: is UTF-16 text; save it as UTF-8"):
        Amazon().read(PETS, tmp_path)
    (tmp_path / "Pet_Supplies_5.json").write_bytes(log)
    (tmp_path / "meta_Pet_Supplies.json").write_text('{"asin": "B1", "title": "a\\u0000b"}\n')
    with pytest.raises(UserError, match=r"meta_Pet_Supplies\.json:1: title: holds a NUL character"):
        Amazon().read(PETS, tmp_path)


def test_ratings_of_another_release_are_refused_with_their_line(tmp_path):
    write_layout(tmp_path, "Pet_Supplies.csv of 2023")
    (tmp_path / "meta_Pet_Supplies.json").write_text(LINES_2018)
    with pytest.raises(UserError, match=r"Pet_Supplies\.csv:1: timestamp 'timestamp' is not a number"):
        Amazon().read(replace(PETS, release=2018), tmp_path)
    write_layout(tmp_path, "Pet_Supplies.csv")
    with pytest.raises(
        UserError, match=r"Pet_Supplies\.csv:1: user='user_id', .* are not columns; the file has 'B2', 'A1'"
    ):
        Amazon().read(replace(PETS, release=2023), tmp_path)


def test_a_line_of_ratings_that_is_cut_short_is_named(tmp_path):
    write_layout(tmp_path, "ratings_Pet_Supplies.csv")
    (tmp_path / "ratings_Pet_Supplies.csv").write_text("A1,B2,5.0,20\nA2,B1\n")
    with pytest.raises(UserError, match=r"ratings_Pet_Supplies\.csv:2: has 2 fields, expected 4"):
        Amazon().read(PETS, tmp_path)
