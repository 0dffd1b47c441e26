"""Points as a CSV file."""

import csv
import json

from told import CONFIG, HPARAMS, tell

from src.core.tracking.csv_points import CsvConfig


def points(folder) -> list[tuple[str, int, float]]:
    with (folder / "tracking" / "csv" / "baseline" / "points.csv").open(newline="") as file:
        return sorted((row["tag"], int(row["step"]), float(row["value"])) for row in csv.DictReader(file))


def both(values: dict[int, float]) -> list[tuple[str, int, float]]:
    return [(tag, step, value) for tag in ("loss", "valid/ndcg@10") for step, value in values.items()]


def test_a_resumed_run_has_every_point_once(tmp_path):
    tell(CsvConfig(), tmp_path, [1, 2, 3], value=0.5, final=0.1)
    tell(CsvConfig(), tmp_path, [3, 4], value=1 / 3, keep_until=2, final=0.2)

    values = both({1: 0.5, 2: 0.5, 3: 1 / 3, 4: 1 / 3})  # to the last digit
    assert points(tmp_path) == sorted([*values, ("test/ndcg@10", 2, 0.2)])


def test_a_fresh_run_removes_the_points_of_an_earlier_one(tmp_path):
    tell(CsvConfig(), tmp_path, [1, 2])
    tell(CsvConfig(), tmp_path, [1], value=0.5)
    assert points(tmp_path) == both({1: 0.5})


def test_a_half_written_line_is_left_behind(tmp_path):
    tell(CsvConfig(), tmp_path, [1])
    file = tmp_path / "tracking" / "csv" / "baseline" / "points.csv"
    file.write_text(file.read_text() + "2,loss,0.")
    tell(CsvConfig(), tmp_path, [3], keep_until=2)
    assert points(tmp_path) == both({1: 0.0, 3: 0.0})


def test_settings_stand_beside_what_they_led_to(tmp_path):
    tell(CsvConfig(), tmp_path, [1], final=0.5)
    folder = tmp_path / "tracking" / "csv" / "baseline"
    assert (folder / "config.yaml").read_text() == CONFIG
    assert json.loads((folder / "summary.json").read_text()) == {
        "hparams": HPARAMS,
        "step": 2,
        "metrics": {"test/ndcg@10": 0.5},
    }
