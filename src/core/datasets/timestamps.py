"""Times as people write them, numbers or ISO 8601 dates, without losing a digit."""

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext
from typing import Final

import numpy as np

from src.core.datasets.base import Ids

_MAX: Final = 2**63 - 1
_NUMBER: Final = re.compile(r"[+-]?(\d{1,40}\.?\d{0,40}|\.\d{1,40})([eE][+-]?\d{1,3})?", re.ASCII)
_DATE: Final = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d)([T ](?P<minute>\d\d:\d\d)(:(?P<second>\d\d)([.,](?P<fraction>\d{1,9}))?)?"
    r" ?(?P<zone>Z|UTC|(?P<sign>[+-])(?P<hours>\d\d)(:?(?P<minutes>[0-5]\d))?)?)?",
    re.ASCII | re.IGNORECASE,
)
_UNITS: Final = (10**9, 10**6, 10**3, 1)  # nanoseconds of what dates are counted in: the coarsest that loses nothing


class BadTime(ValueError):
    """One of the times cannot be used.

    Attributes:
        row: its place.
    """

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(reason)
        self.row = row


def parse_times(cells: Ids) -> np.ndarray:
    """Read a column of times; dates without a zone are UTC.

    Args:
        cells: N texts, all numbers, all dates with a zone, or all dates without.

    Returns:
        int64 [N]; float64 [N] where numbers have fractions that it tells apart. Times that differ stay different, and
        in their order; dates are counted since 1970 in s, ms, µs or ns, whatever holds them exactly.

    Raises:
        BadTime: what is neither, is of another kind than the first, or is beyond 64 bits.
    """
    import pandas as pd  # a second that only a log costs, not what was processed before

    numbers = pd.to_numeric(pd.Series(cells.values), errors="coerce").to_numpy()
    if numbers.dtype == np.int64:
        return numbers[cells.codes]
    first_rows = cells.first_rows().tolist()
    values: list[Decimal | int] = []
    first_kind = ""
    for text, row in zip(cells.values, first_rows, strict=True):
        kind, value = _parse(text, row)
        first_kind = first_kind or kind
        if kind != first_kind:
            raise BadTime(row, f"timestamp {text!r} is {kind}, but the first one is {first_kind}; write all alike")
        values.append(value)
    column = _scaled(values) if first_kind == "a number" else _in_coarsest_unit(values)
    place = next((place for place, value in enumerate(column) if abs(value) > _MAX), None)
    if place is not None:
        text = cells.values[place]
        reason = f"timestamp {text!r} does not fit into 64 bits with as many digits as others have"
        raise BadTime(first_rows[place], reason)
    return np.array(column)[cells.codes]


def _parse(text: str, row: int) -> tuple[str, Decimal | int]:
    """What kind of time it is, in words, and its value: a date's in nanoseconds since 1970."""
    text = text.strip()
    if _NUMBER.fullmatch(text):
        value = Decimal(text)
        if value.copy_abs() > _MAX:
            raise BadTime(row, f"timestamp {text!r} does not fit into 64 bits")
        return "a number", value
    date = _DATE.fullmatch(text)
    try:
        if date:
            return "a date with a zone" if date["zone"] else "a date without a zone", _nanoseconds(date)
    except ValueError as error:
        raise BadTime(row, f"timestamp {text!r} is no date: {error}") from None
    raise BadTime(row, f"timestamp {text[:60]!r} is not a number or an ISO 8601 date")


def _nanoseconds(date: re.Match[str]) -> int:
    clock = f"{date['minute'] or '00:00'}:{date['second'] or '00'}"
    moment = datetime.fromisoformat(f"{date['day']}T{clock}").replace(tzinfo=UTC)
    east = timedelta(hours=int(date["hours"] or 0), minutes=int(date["minutes"] or 0))
    if east >= timedelta(days=1):
        raise ValueError("its zone is a day or more from UTC")
    since_1970 = moment - datetime(1970, 1, 1, tzinfo=UTC) - (-east if date["sign"] == "-" else east)
    whole = since_1970.days * 86400 + since_1970.seconds
    return whole * 10**9 + int((date["fraction"] or "0").ljust(9, "0"))


def _in_coarsest_unit(values: list) -> list[int]:
    unit = next(unit for unit in _UNITS if all(value % unit == 0 for value in values))
    return [value // unit for value in values]


def _scaled(values: list) -> list:
    """Whole numbers as int; others as float if no two become one, else counted in the last digit that any has."""
    if all(value == value.to_integral_value() for value in values):
        return [int(value) for value in values]
    floats = [float(value) for value in values]
    if len(set(floats)) == len(set(values)):
        return floats
    digits = max(-value.as_tuple().exponent for value in values)
    with localcontext(prec=2000):  # more than `_NUMBER` allows, so that nothing is rounded
        return [int(value.scaleb(digits)) for value in values]
