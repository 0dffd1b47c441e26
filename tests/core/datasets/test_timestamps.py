"""Times: numbers and dates, exact to the last digit, all of one kind."""

import numpy as np
import pytest

from src.core.datasets.base import Ids
from src.core.datasets.timestamps import BadTime, parse_times


def times(*cells: str) -> np.ndarray:
    return parse_times(Ids.of(np.array(cells, dtype=object)))


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["3", "-1", " 2 "], [3, -1, 2]),
        (["1600000000000000001", "1600000000000000003.0"], [1600000000000000001, 1600000000000000003]),
        (["1e3", "1000.00"], [1000, 1000]),
        (["9223372036854775807", "1.0"], [2**63 - 1, 1]),
        (["1600000000.123456789", "1600000000.123456788"], [1600000000123456789, 1600000000123456788]),
        (["1970-01-02", "1969-12-31"], [86400, -86400]),
        (["1970-01-01T01:00Z", "1970-01-01 00:00:00+01:00", "1970-01-01T00:00:01-0030"], [3600, -3600, 1801]),
        (["1970-01-01T00:00:00.25", "1970-01-01"], [250, 0]),
        (["1970-01-01T00:00:01,123456789", "1970-01-01T00:00:01.123456788"], [1123456789, 1123456788]),
        (["9999-12-31T00:00:00.5Z"], [253402214400500]),
    ],
)
def test_whole_numbers_and_dates_are_exact(cells, expected):
    found = times(*cells)
    assert found.dtype == np.int64 and found.tolist() == expected


def test_fractions_that_floats_tell_apart_stay_as_they_are():
    found = times("1.5", "0", "1e-300", "1.5")
    assert found.dtype == np.float64 and found.tolist() == [1.5, 0.0, 1e-300, 1.5]


@pytest.mark.parametrize(
    ("cells", "row", "message"),
    [
        (["1", "2", "noon"], 2, "'noon' is not a number or an ISO 8601 date"),
        (["1", "", "x"], 1, "'' is not a number"),
        (["nan"], 0, "is not a number"),
        (["1", "inf"], 1, "is not a number"),
        (["1", "1_0"], 1, "is not a number"),
        (["1", "9223372036854775808"], 1, "does not fit into 64 bits"),
        (["1", "1e400"], 1, "does not fit into 64 bits"),
        (["1e999999999"], 0, "is not a number"),
        (["2e18", "1600000000.123456789", "1600000000.123456788"], 0, "does not fit .* with as many digits as others"),
        (["1", "2014-07-08"], 1, "is a date without a zone, but the first one is a number; write all alike"),
        (["2014-07-08", "2014-07-08", "2014-07-08T00:00Z"], 2, "with a zone, but the first one is a date without"),
        (["2014-02-30"], 0, "is no date: day is out of range"),
        (["2014-07-08T24:30"], 0, "is no date: hour"),
        (["2014-07-08T00:00+25:00"], 0, "is no date: its zone is a day or more"),
    ],
)
def test_what_is_no_time_or_of_another_kind_is_named(cells, row, message):
    with pytest.raises(BadTime, match=message) as error:
        times(*cells)
    assert error.value.row == row
