"""Pickled tables of any pandas are read alike, without pandas; what is none ends in one line."""

import base64
import pickle
import random
import zlib

import hostile_files as hostile
import numpy as np
import pandas as pd
import pytest
from frames_of_other_versions import FRAMES
from pandas._libs.internals import _unpickle_block
from pandas.core.internals.managers import BlockManager

from src.core.errors import UserError
from src.core.foreign.frames import read_pickled_frame

TABLE = {
    "seq": [[0, 1, 3], [3, 3, 3], [2, 0, 1]],
    "len_seq": [2, 1, 3],
    "next": [2, 0, 0],
    "score": [0.5, 1.5, 2.5],
    "name": ["a", "b", "ç"],
}


@pytest.mark.parametrize("version", FRAMES)
def test_tables_of_other_versions(tmp_path, version):
    (tmp_path / "table.df").write_bytes(zlib.decompress(base64.b64decode(FRAMES[version])))
    columns = read_pickled_frame(tmp_path / "table.df")
    assert columns == TABLE and list(columns) == list(TABLE)
    assert [type(column[0]) for column in columns.values()] == [list, int, int, float, str]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame(TABLE),
        pd.DataFrame(TABLE)[["next", "seq"]],
        pd.DataFrame(TABLE).iloc[[2, 0]],
        pd.DataFrame(
            {"a": [True, False], "b": pd.Series([1, 2], dtype="int8"), "c": pd.Series([1, 2], dtype="float32")}
        ),
        pd.DataFrame({"a": [[1]], "b": [[2]], "c": ["x"]}).copy(),
    ],
    ids=["all", "columns", "rows", "types", "one row"],
)
def test_tables_of_the_installed_version(tmp_path, frame, protocol):
    frame.to_pickle(tmp_path / "table.df", protocol=protocol)
    assert read_pickled_frame(tmp_path / "table.df") == {name: frame[name].tolist() for name in frame}


@pytest.mark.parametrize("name", hostile.PICKLES)
def test_hostile_files_end_in_one_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = hostile.write(tmp_path, "hostile", hostile.PICKLES[name])
    with pytest.raises(UserError) as error:
        read_pickled_frame(path)
    assert str(error.value).startswith(f"{path}: ")
    assert not (tmp_path / hostile.SENTINEL).exists()


def test_what_is_no_table_is_named(tmp_path):
    for value, what in ((pd.Series([1]), "names pandas.core.series.Series"), ([1], "it holds list")):
        (tmp_path / "table.df").write_bytes(pickle.dumps(value))
        with pytest.raises(UserError, match=what):
            read_pickled_frame(tmp_path / "table.df")


class _Table:
    """Pickles as a table whose every column is the same array."""

    def __init__(self, array: np.ndarray, count: int) -> None:
        self.array, self.count = array, count

    def __reduce__(self):
        blocks = tuple(hostile.Call(_unpickle_block, self.array, slice(i, i + 1, 1), 2) for i in range(self.count))
        names = pd.Index([str(i) for i in range(self.count)])
        return pd.DataFrame, (), {"_mgr": hostile.Call(BlockManager, blocks, [names, pd.RangeIndex(1)])}


def test_one_array_for_a_thousand_columns_is_refused(tmp_path):
    """They are cheap in the file: it is the cells that count."""
    path = tmp_path / "table.df"
    path.write_bytes(pickle.dumps(_Table(np.arange(2)[None], 3)))
    assert read_pickled_frame(path) == {"0": [0, 1], "1": [0, 1], "2": [0, 1]}
    path.write_bytes(pickle.dumps(_Table(np.arange(20_000)[None], 1000)))
    with pytest.raises(UserError, match="a block of 1 columns at 1 places, 10020000 cells"):
        read_pickled_frame(path)


def test_changed_bytes_end_in_a_value_or_one_line(tmp_path):
    draw, path, refused = random.Random(0), tmp_path / "changed.df", 0
    contents = [zlib.decompress(base64.b64decode(text)) for text in FRAMES.values()]
    for _ in range(4000):
        content = bytearray(draw.choice(contents))
        for _ in range(draw.choice([1, 1, 2, 8])):
            content[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(content)
        try:
            read_pickled_frame(path)
        except UserError:
            refused += 1
    assert 1000 < refused < 4000
