"""A user's own log: what the reader returns, and the line that each kind of bad input is answered with."""

from pathlib import Path

import pytest
from raw_examples import write

from src.core.datasets.base import Interactions
from src.core.datasets.csv_log import CsvColumns, CsvConfig, CsvLog, read_csv
from src.core.errors import UserError

ITEMS = 'item,title\na,First\nb,"Second, with comma"\n'


def read(folder: Path, log: str, items: str = ITEMS, separator: str = ",", **names: str) -> Interactions:
    write(folder, log__csv=log, items__csv=items)
    return read_csv(folder / "log.csv", folder / "items.csv", separator=separator, columns=CsvColumns(**names))


def test_csv_with_other_columns_and_separator(tmp_path):
    log = read(
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
    log = read(
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
    log = read_csv(tmp_path / "log.csv", tmp_path / "items.csv", separator=",", columns=CsvColumns())
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
        read(tmp_path, "user,item,timestamp\n" + lines)


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
        read(tmp_path, "user,item,timestamp\nu,a,1\n", items)


def test_missing_column_names_the_setting(tmp_path):
    with pytest.raises(
        UserError,
        match=r"log\.csv:1: dataset\.columns\.timestamp='timestamp' is not a column; .* user, item, t",
    ):
        read(tmp_path, "user,item,t\nu,a,1\n")


def test_wrong_encoding_names_its_line(tmp_path):
    write(tmp_path, log__csv="user,item,timestamp\nu,a,1\n", items__csv="item,title\nb,x\na,Café\n")
    with pytest.raises(UserError, match=r"items\.csv:3: not valid utf-8"):
        read_csv(tmp_path / "log.csv", tmp_path / "items.csv", separator=",", columns=CsvColumns())


def test_a_tab_written_out_separates(tmp_path):
    write(tmp_path, log__tsv="user\titem\ttimestamp\nu\ta\t1\n", items__csv="item\ttitle\na\tFirst, of all\n")
    config = CsvConfig(interactions_file="log.tsv", separator="\\t")
    log = CsvLog().read(config, tmp_path)
    assert (log.users.tolist(), log.items.tolist(), log.titles) == (["u"], ["a"], {"a": "First, of all"})
    assert config.separator == "\\t"  # as it was given
