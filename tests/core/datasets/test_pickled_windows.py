"""Pickled tables are read as pandas reads them, and nothing that a file names is executed."""

import os
import pickle

import numpy as np
import pandas as pd
import pytest
from raw_examples import lastfm_folder

from src.core.datasets.lastfm import read_lastfm
from src.core.errors import UserError
from src.core.foreign.frames import read_pickled_frame


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickled_frame_reads_as_pandas_does(tmp_path, protocol):
    frame = pd.DataFrame({"a": [1, 2, 3], "b": [[1], [2], [3]], "c": [0.5, 1.5, 2.5], "d": [7, 8, 9], "e": list("xyz")})
    frame.to_pickle(tmp_path / "frame.df", protocol=protocol)
    columns = read_pickled_frame(tmp_path / "frame.df")
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
        read_lastfm(folder)
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"no pickle", pickle.dumps([1, 2]), pickle.dumps({"a": 1})[:-3]])
def test_damaged_pickle_is_named(tmp_path, content):
    folder = lastfm_folder(tmp_path)
    (folder / "train_data.df").write_bytes(content)
    with pytest.raises(UserError, match=r"train_data\.df: not a readable pickle of a pandas table") as error:
        read_lastfm(folder)
    assert "\n" not in str(error.value)
