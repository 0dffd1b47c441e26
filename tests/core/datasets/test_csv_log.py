"""A user's own log: what the reader returns, and the line that each kind of bad input is answered with."""

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
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
            r"items\.csv:1: dataset\.columns\.title='title' is not a column; the file has 'item', 'name'",
        ),
    ],
)
def test_malformed_titles_name_their_line(tmp_path, items, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, "user,item,timestamp\nu,a,1\n", items)


def test_missing_column_names_the_setting(tmp_path):
    with pytest.raises(
        UserError,
        match=r"log\.csv:1: dataset\.columns\.timestamp='timestamp' is not a column; .* 'user', 'item', 't'",
    ):
        read(tmp_path, "user,item,t\nu,a,1\n")


def test_wrong_encoding_names_its_line(tmp_path):
    write(tmp_path, log__csv="user,item,timestamp\nu,a,1\n", items__csv="item,title\nb,x\na,Café\n")
    with pytest.raises(UserError, match=r"items\.csv:3: not valid UTF-8"):
        read_csv(tmp_path / "log.csv", tmp_path / "items.csv", separator=",", columns=CsvColumns())


def test_a_tab_written_out_separates(tmp_path):
    write(tmp_path, log__tsv="user\titem\ttimestamp\nu\ta\t1\n", items__csv="item\ttitle\na\tFirst, of all\n")
    config = CsvConfig(interactions_file="log.tsv", separator="\\t")
    log = CsvLog().read(config, tmp_path)
    assert (log.users.tolist(), log.items.tolist(), log.titles) == (["u"], ["a"], {"a": "First, of all"})
    assert config.separator == "\\t"  # as it was given


def test_dates_are_times_and_two_kinds_of_them_name_the_line(tmp_path):
    log = read(tmp_path, "user,item,timestamp\nu,a,2014-07-08T12:00:00+02:00\nu,b,2014-07-08T11:00:00Z\n")
    assert np.diff(log.timestamps).tolist() == [3600]
    with pytest.raises(UserError, match=r"log\.csv:4: timestamp '2014-07-08' is a date without a zone, but the first"):
        read(tmp_path, "user,item,timestamp\nu,a,2014-07-08T12:00Z\n\nu,b,2014-07-08\n")


def test_nanoseconds_keep_their_order_beside_a_fraction_that_is_none(tmp_path):
    log = read(tmp_path, "user,item,timestamp\nu,a,1600000000000000002.0\nu,b,1600000000000000001\n")
    assert (log.timestamps - 1600000000000000000).tolist() == [2, 1]


def test_a_missing_title_is_refused_or_left_to_the_items_name(tmp_path):
    write(tmp_path, interactions__csv="user,item,timestamp\nu,a,1\nu,c,2\n", items__csv=ITEMS)
    with pytest.raises(
        UserError, match=r"csv:3: item 'c' has no entry in .*; add one, or set dataset\.missing_titles=name"
    ):
        CsvLog().read(CsvConfig(), tmp_path)
    log = CsvLog().read(CsvConfig(missing_titles="name"), tmp_path)
    assert log.items.tolist() == ["a", "c"] and "c" not in log.titles


def test_gzipped_files_are_read_where_only_they_are_there(tmp_path):
    for name, text in (("interactions.csv", "user,item,timestamp\nu,a,1\n"), ("items.csv", ITEMS)):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    assert CsvLog().read(CsvConfig(), tmp_path).titles["a"] == "First"
    (tmp_path / "items.csv.gz").write_bytes(gzip.compress(ITEMS.encode())[:-9])
    with pytest.raises(UserError, match=r"items\.csv\.gz: damaged .*; replace it by a complete copy"):
        CsvLog().read(CsvConfig(), tmp_path)


# --- quotes -------------------------------------------------------------------------------------------------

QUOTED = "user,item,timestamp\n" + "".join(f'"u",{"ab"[i % 2]},{i}\n' for i in range(4))


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (QUOTED.replace('"u",a,2', '"u,a,2'), r"log\.csv:4: the quote that opens here is closed in line 5 with text"),
        (QUOTED.replace('"u",b,3', '"u,b,3'), r"log\.csv:5: the quote that opens here is never closed"),
        (QUOTED.replace('"u",b,3\n', '"u,b,3'), r"log\.csv:5: the quote that opens here is never closed"),
        (QUOTED + '"u,a,4\nu,b,5\nu,a,6"\n', r"log\.csv:6: .* is closed in line 8, round lines that look like rows"),
        (QUOTED + '"u"1,a,4\n', r"log\.csv:6: the quote that opens here is closed with text behind it"),
        (QUOTED + '""u"",a,4\n', r"log\.csv:6: the quote that opens here is closed with text behind it"),
        (QUOTED.replace("\n", "\r\n") + '"u,a,4\r\n', r"log\.csv:6: the quote that opens here is never closed"),
    ],
)
def test_a_quote_that_swallows_what_follows_is_named_where_it_opens(tmp_path, log, message):
    with pytest.raises(UserError, match=message + ".*; close it, .* or set dataset.quoting=none"):
        read(tmp_path, log)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (ITEMS + 'c,"Third\nd,Fourth\ne,Fifth\n', r"items\.csv:4: the quote that opens here is never closed"),
        (ITEMS + 'c,"Third\nd,Fourth"\n', r"items\.csv:4: .* closed in line 5, round lines that look like rows"),
        (ITEMS + 'c,"Odd" Al\n', r"items\.csv:4: the quote that opens here is closed with text behind it"),
    ],
)
def test_a_quote_that_swallows_titles_is_named_where_it_opens(tmp_path, items, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, QUOTED, items)


def test_quotes_that_are_closed_are_read(tmp_path):
    log = read(tmp_path, QUOTED.replace('"u",a,0', '"u ""2""",a,0'), ITEMS + 'c,"The\n""Third"""\nd,12" Remix\n')
    assert log.users.tolist() == ['u "2"', "u", "u", "u"]
    assert log.titles["c"] == 'The\n"Third"' and log.titles["d"] == '12" Remix'


def test_quotes_are_checked_in_one_pass(tmp_path):
    """A line of a million characters: a look to its end from each of its fields would take minutes."""
    columns, empty = ",".join(f"c{i}" for i in range(250_000)), ",".join(['""'] * 250_000)
    items = f"item,title,{columns}\na,First,{empty}\n"
    log = "user,item,timestamp\nu,a,1\n"
    assert read(tmp_path, log, items).titles == {"a": "First"}


def test_files_that_quote_nothing_as_recbole_has_them(tmp_path):
    write(
        tmp_path,
        shop__inter='user_id:token\titem_id:token\ttimestamp:float\n"u\ta\t1.0\nu"\tb\t2.0\n',
        shop__item='item_id:token\titem_name:token_seq\na\t"Odd" Al\nb\t"Unclosed\n',
    )
    columns = CsvColumns(
        user="user_id:token", item="item_id:token", timestamp="timestamp:float", title="item_name:token_seq"
    )
    config = CsvConfig(interactions_file="shop.inter", titles_file="shop.item", separator="\\t", columns=columns)
    log = CsvLog().read(replace(config, quoting="none"), tmp_path)
    assert log.users.tolist() == ['"u', 'u"'] and log.timestamps.tolist() == [1, 2]
    assert log.titles == {"a": '"Odd" Al', "b": '"Unclosed'}
    with pytest.raises(UserError, match=r"shop\.item:2: the quote that opens here"):
        CsvLog().read(config, tmp_path)


# --- other programs' files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_line_ends_of_other_systems(tmp_path, end):
    (tmp_path / "log.csv").write_bytes(f"user,item,timestamp{end}u,a,1{end}u,b,2{end}".encode())
    (tmp_path / "items.csv").write_bytes(ITEMS.replace("\n", end).encode())
    log = read_csv(tmp_path / "log.csv", tmp_path / "items.csv", separator=",", columns=CsvColumns())
    assert (log.users.tolist(), log.titles["a"]) == (["u", "u"], "First")


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("user; item;timestamp\nu;a;1\n", r"'user; item;timestamp'; set dataset\.separator=';' if that separates"),
        (
            "user, item, timestamp\nu, a, 1\n",
            r"has 'user', ' item', ' timestamp'; did you mean ' item'\? .* the blanks",
        ),
        ("User,item,timestamp\nu,a,1\n", r"dataset\.columns\.user='user' is not a column; .* did you mean 'User'\?"),
        ("user,item,item,timestamp\nu,a,b,1\n", r"log\.csv:1: dataset\.columns\.item='item' is the name of two"),
        ("user,item,timestamp\nu,a,1\nu,b,1,\n", r"log\.csv:3: has 4 fields, expected 3 .*; take the ',' off its end"),
        ("user,item,timestamp\nu\0,a,1\n", r"log\.csv:2: holds a NUL character"),
        ("user,item,timestamp\nu,a.0,1\nu,b,2\n", r"item 'a\.0' .* \(1 of the log's 2 items .*\); did you mean 'a'\?"),
        ("user,item,timestamp\nu, A,1\nu,b,2\n", r"csv:2: item ' A' has no entry in .*; did you mean 'a'\? Write ids"),
    ],
)
def test_a_likely_mistake_is_named(tmp_path, log, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, log)


def test_titles_that_miss_their_items_are_warned_of(tmp_path):
    write(tmp_path, interactions__csv="user,item,timestamp\nu,a.0,1\nu,b.0,2\n", items__csv=ITEMS)
    log = CsvLog().read(CsvConfig(missing_titles="name"), tmp_path)
    assert log.warnings == (
        "items.csv: 2 of the log's 2 items have none there, first item 'a.0'; "
        "did you mean 'a'? Write ids alike in both files",
    )


# --- Parquet ------------------------------------------------------------------------------------------------

PARQUET = CsvConfig(interactions_file="log.parquet", titles_file="items.parquet")


def read_parquet(folder: Path, **columns: object) -> Interactions:
    log = {"user": ["u", "v"], "item": [7, 8], "timestamp": [1, 2], **columns}
    parquet.write_table(
        pa.table({name: values for name, values in log.items() if values is not None}), folder / "log.parquet"
    )
    parquet.write_table(pa.table({"item": ["7", "8"], "title": ["Seven", None]}), folder / "items.parquet")
    return CsvLog().read(PARQUET, folder)


def test_parquet_is_read_like_text(tmp_path):
    log = read_parquet(tmp_path, user=["u", "ü"], timestamp=[2**62 + 1, 2**62])
    assert (log.users.tolist(), log.items.tolist()) == (["u", "ü"], ["7", "8"])
    assert log.titles == {"7": "Seven", "8": ""}
    assert log.timestamps.dtype == np.int64 and log.timestamps.tolist() == [2**62 + 1, 2**62]


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("timestamp[ns]", [10**18 + 1, 10**18], [10**18 + 1, 10**18]),
        ("date32", [3, 2], [3, 2]),
        ("double", [1.5, 2.0], [1.5, 2.0]),
        ("string", ["1970-01-02", "1970-01-01"], [86400, 0]),
        ("dictionary", ["5", "4"], [5, 4]),
    ],
)
def test_times_in_parquet_are_exact(tmp_path, kind, values, expected):
    types = {"dictionary": pa.dictionary(pa.int32(), pa.string()), "timestamp[ns]": pa.timestamp("ns", "UTC")}
    column = pa.array(values, types.get(kind) or pa.type_for_alias(kind))
    assert read_parquet(tmp_path, timestamp=column).timestamps.tolist() == expected


def test_times_that_a_float_has_rounded_are_warned_of(tmp_path):
    warnings = read_parquet(tmp_path, timestamp=[1.6e18, 1.5]).warnings
    assert warnings[0].startswith("log.parquet: 1 times are floating-point numbers beyond 2**53, which are rounded")
    assert read_parquet(tmp_path, timestamp=[1.6e9, 1.5]).warnings == ()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"user": None, "item": None, "who": ["u", "v"]},
            r"dataset\.columns\.user='user', dataset\.columns\.item='item' are not columns; .* 'time.*, 'who'",
        ),
        ({"user": ["u", None]}, r"log\.parquet: row 2: the user is empty"),
        ({"timestamp": [1, None]}, r"log\.parquet: row 2: the timestamp is missing"),
        ({"timestamp": [1.0, float("inf")]}, r"log\.parquet: row 2: timestamp inf is not a number"),
        ({"timestamp": [True, False]}, r"the column 'timestamp' holds bool, must be numbers, points in time or text"),
        ({"item": [7.0, 8.0]}, r"the column 'item' holds double, must be text or integers"),
        ({"user": ["u", "v\0"]}, r"log\.parquet: row 2: the column 'user': holds a NUL character"),
        ({"item": [7, 9]}, r"log\.parquet: row 2: item '9' has no entry"),
    ],
)
def test_a_parquet_file_of_another_kind_is_refused(tmp_path, columns, message):
    with pytest.raises(UserError, match=message):
        read_parquet(tmp_path, **columns)


def test_what_is_no_parquet_is_refused(tmp_path):
    read_parquet(tmp_path)
    (tmp_path / "log.parquet").write_bytes((tmp_path / "log.parquet").read_bytes()[:-20])
    with pytest.raises(UserError, match=r"log\.parquet: not a Parquet file that can be read"):
        CsvLog().read(PARQUET, tmp_path)
