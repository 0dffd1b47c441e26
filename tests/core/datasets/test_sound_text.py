"""The reader in pieces: what it takes it reads as the careful reader does, and it leaves alone what is doubtful."""

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from src.core.datasets import sound_text, tables
from src.core.datasets.base import Ids
from src.core.datasets.csv_log import CsvColumns, read_csv
from src.core.datasets.sound_text import Columns, Layout, read_sound_text
from src.core.errors import UserError

NAMES = {"user": "user", "item": "item", "timestamp": "timestamp"}
HEAD = "user,item,timestamp\n"
ROWS = HEAD + "u1,1,5\nu2,007,3\nu1,1,1400000000\n"

SOUND = {
    "plain": ROWS,
    "no line end at the end": ROWS[:-1],
    "Windows": ROWS.replace("\n", "\r\n"),
    "old Mac": ROWS.replace("\n", "\r"),
    "old Mac, a blank in front": HEAD.replace("\n", "\r") + " u,1,2\r u,2,1\r",
    "byte order mark": "\ufeff" + ROWS,
    "blank lines": HEAD + "\nu,1,2\n\n\nv,2,1\n\n",
    "other columns": "x,timestamp,user,item\n,5,u,1\nx y,6,v,2\n",
    "quoted": 'user,"item",timestamp\n"u","a,b","1"\n"v","say ""x""",2\n"","",3\n',
    "quoted, Windows": '"user","item","timestamp"\r\n"u","1","1"\r\n',
    "no ASCII": HEAD + "ü,日本,1\n\u00a0,é,2\n",
    "blanks": HEAD + " u , 1,2\nu,1,2 \n",
    "like missing ones": HEAD + "NA,nan,1\nnull,None,2\n",
    "like numbers": HEAD + "1.0,1e3,0x10\n+1,-1,1_0\n",
    "empty cells": HEAD + ",,\nu,1,2\n",
    "times with a zero in front": HEAD + "u,1,007\nu,2,12\n",
    "times before 1970": HEAD + "u,1,-7\nu,2,12\n",
    "fractions": HEAD + "u,1,1\nu,2,1.5\n",
    "dates": HEAD + "u,1,2014-07-08\nu,2,2014-07-09 10:00\n",
    "numbers, then dates": HEAD + "u,1,5\n" * 9 + "u,1,2014-07-08\n",
    "beyond 64 bits": HEAD + "u,1,99999999999999999999\n",
    "many digits": HEAD + "u,1,1400000000123456789\nu,1,1400000000123456788\n",
    "no rows": HEAD,
}
DOUBTFUL = {
    "a quote that is not closed": HEAD + 'u,"1,2\nv,1,2\n',
    "a quote amid a field": HEAD + 'u,a"b,2\n',
    "a quote behind a blank": HEAD + 'u, "a",2\n',
    "text behind a quote": HEAD + 'u,"a"b,2\n',
    "a field of two lines": HEAD + 'u,"a\nb",2\nv,1,2\n',
    "a header of two lines": 'user,item,"x\ny",timestamp\nu,1,,2\n',
    "a quote that opens in the last line": HEAD + 'a",1,2\nu,1,"2\n',
    "a short row": HEAD + "u,1\nv,1,2\n",
    "a long row": HEAD + "u,1,2,3\n",
    "a comma at the end": HEAD + "u,1,2,\nv,1,2,\n",
    "a line of blanks": HEAD + "u,1,2\n  \nv,1,2\n",
    "a blank line in front": "\n" + ROWS,
    "a mark of byte order twice": "\ufeff\ufeff" + ROWS,
    "another column": ROWS.replace("item", "thing", 1),
    "a column twice": ROWS.replace("item", "user", 1),
    "a NUL": HEAD + "u\0,1,2\n",
    "nothing but a mark": "\ufeff",
}
BYTES = {
    "Latin-1": (HEAD + "é,1,2\n").encode("latin-1"),
    "UTF-16": ROWS.encode("utf-16"),
    "half a gzip file": gzip.compress(ROWS.encode())[:-9],
    "a ZIP archive": b"PK\x03\x04" + bytes(30),
}


@pytest.fixture(params=[3, 20, 1 << 27], ids=["pieces of 3 bytes", "of 20", "whole"])
def pieces(request, monkeypatch) -> None:
    monkeypatch.setattr(sound_text, "_PIECE", request.param)


def careful(path: Path, layout: Layout) -> tuple:
    """What the careful reader makes of it: raw ids, codes, and times as text; or its refusal."""
    try:
        return shown(tables._read_doubtful_text(path, layout))
    except UserError as error:
        return (str(error),)


def shown(columns: dict[str, Ids | np.ndarray]) -> tuple:
    users, items, times = columns["user"], columns["item"], columns["timestamp"]
    return (users.values.tolist(), users.codes.tolist(), items.values.tolist(), items.codes.tolist()), [
        str(time) for time in times.tolist()
    ]


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", SOUND)
def test_what_is_sound_is_read_as_with_care(tmp_path, name, zipped):
    path, content = tmp_path / "log.csv", SOUND[name].encode()
    path.write_bytes(gzip.compress(content) if zipped else content)
    found = read_sound_text(path, Layout(names=NAMES))
    assert found is not None and shown(found) == careful(path, Layout(names=NAMES))


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("name", [*DOUBTFUL, *BYTES])
def test_what_is_doubtful_is_left_to_the_careful_reader(tmp_path, name):
    path = tmp_path / "log.csv"
    path.write_bytes(BYTES[name] if name in BYTES else DOUBTFUL[name].encode())
    assert read_sound_text(path, Layout(names=NAMES)) is None


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("name", DOUBTFUL)
def test_without_quoting_a_quote_is_a_character(tmp_path, name):
    path, layout = tmp_path / "log.csv", Layout(names=NAMES, quoting="none")
    path.write_bytes(DOUBTFUL[name].encode())
    found = read_sound_text(path, layout)
    assert found is None or shown(found) == careful(path, layout)
    assert (found is not None) == ("quote" in name)


@pytest.mark.usefixtures("pieces")
def test_other_separators_and_no_header(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("u\t1\t5\nv\t2\t6\n")
    layout = Layout(names=NAMES, separator="\t", header=("user", "item", "timestamp"))
    found = read_sound_text(path, layout)
    assert shown(found) == ((["u", "v"], [0, 1], ["1", "2"], [0, 1]), ["5", "6"])
    path.write_text(ROWS.replace(",", "·"))
    assert read_sound_text(path, Layout(names=NAMES, separator="·")) is None  # not of one byte


def test_a_log_with_a_doubtful_last_line_is_refused_by_its_number(tmp_path, monkeypatch):
    monkeypatch.setattr(sound_text, "_PIECE", 10)
    monkeypatch.setattr(tables, "_ROWS", 2)
    log, titles = tmp_path / "log.csv", tmp_path / "items.csv"
    titles.write_text("item,title\n1,One\n")
    for line, reason in (
        ("u,1", "has 2 fields, expected 3"),
        ("u,1,2,3", "has 4 fields, expected 3"),
        ('u,"1,2', "the quote that opens here is never closed"),
        (",1,2", "the user is empty"),
        ("u,1,soon", "timestamp 'soon' is not a number"),
        ("u,2,5", "item '2' has no entry"),
    ):
        log.write_text(HEAD + "u,1,5\n" * 7 + line + "\n")
        with pytest.raises(UserError, match=rf"log\.csv:9: .*{reason}"):
            read_csv(log, titles, separator=",", columns=CsvColumns())


def test_parts_with_other_ids_and_times_of_other_kinds_become_one_column():
    columns = Columns(Layout(names=NAMES))
    for users, times in ((["b", "a"], ["5", "60"]), (["c", "b"], ["1.5", "5"])):
        columns.add("user", pa.chunked_array([users]))
        columns.add("timestamp", pa.chunked_array([times]))
    found = columns.joined()
    assert found["user"].tolist() == ["b", "a", "c", "b"] and found["user"].values.tolist() == ["b", "a", "c"]
    assert found["timestamp"].tolist() == ["5", "60", "1.5", "5"]
    assert len(found["item"]) == 0
