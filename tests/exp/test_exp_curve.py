"""The curve of distilled quality against the share of exported rows: its points, and going on after an interruption."""

import shutil

import pandas as pd
from harness import TINY_STUDENT, places, run_here

from src.exp import selection_curve


def call(pipeline, folder, *overrides: str) -> int:
    where = places(pipeline.data_dir, pipeline.result_root, folder)
    asked = ("curve.policies=[random]", "curve.seeds=[42]", "distill.num_epochs=1", "student.num_epochs=1")
    return run_here(selection_curve.run, *TINY_STUDENT, *where, *asked, *overrides)


def test_started_again_only_new_points_are_trained(pipeline, tmp_path, capsys) -> None:
    folder = tmp_path / "run"
    assert call(pipeline, folder, "curve.shares=[0.2]") == 0
    first = pd.read_csv(folder / "metrics" / "selection_curve.csv")
    assert first["policy"].tolist() == ["baseline", "no row", "all rows", "random"]
    share_of_rows = first["rows"] / first["rows"].max()
    assert share_of_rows.round(3).tolist() == first["share"].tolist() == [0, 0, 1, 0.2]
    shutil.rmtree(folder / "curve" / "all_rows_1")
    (folder / "logs" / "selection_curve.log").unlink()

    assert call(pipeline, folder, "curve.shares=[0.2,0.5]") == 0

    log = (folder / "logs" / "selection_curve.log").read_text()
    assert log.count("skipped: complete and unchanged") == 3
    assert "curve/all_rows_1/seed_42\n" in log and "curve/random_0.5/seed_42\n" in log
    again = pd.read_csv(folder / "metrics" / "selection_curve.csv")
    pd.testing.assert_frame_equal(again[:4], first)
    assert again["share"].tolist() == [0, 0, 1, 0.2, 0.5]

    assert call(pipeline, folder, "curve.shares=[0.2]", "distill.alpha=0.1") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "stage distill is finished there" in error and "distill.alpha changed from" in error
