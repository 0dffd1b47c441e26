"""Lines of objects: Python literals are read as Python reads them, and hostile ones end in one line."""

import ast

import pytest

from src.core.errors import UserError
from src.core.foreign.object_lines import read_object_lines

FIELDS = ("asin", "title")


def read(folder, *lines: str) -> list:
    (folder / "meta.json").write_bytes("\n".join(lines).encode() + b"\n")
    return list(read_object_lines(folder / "meta.json", FIELDS))


@pytest.mark.parametrize(
    "value",
    ["plain", "it's", 'say "no"', 'it\'s "both"', "a\\\\b\n\t\x00é\U0001f600", "{[(,:", "", 7, -1.5, 1e300, None, True],
    ids=repr,
)
@pytest.mark.parametrize("show", [repr, ascii])
def test_a_value_is_what_python_takes_it_for(tmp_path, value, show):
    product = {"x": [["a", {"b": ("}", "'")}], -1, None], "asin": value, "y": {}, "title": "t", "z": '"'}
    line = show(product)
    assert ast.literal_eval(line) == product
    assert read(tmp_path, line) == [(1, {"asin": value, "title": "t"})]


def test_python_2_and_a_last_comma(tmp_path):
    assert read(tmp_path, "{u'asin': u'x\\u00e9', 'title': 12L , }") == [(1, {"asin": "xé", "title": 12})]


def test_json_and_literals_may_alternate_and_blank_lines_count(tmp_path):
    lines = ['{"asin": "a", "b": [1]}', "", "{'asin': 'c', 'b': [1]}", "{}"]
    assert read(tmp_path, *lines) == [(1, {"asin": "a", "b": [1]}), (3, {"asin": "c"}), (4, {})]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'asin': 'x", "not a Python literal of at most 12 levels from character 2 on"),
        ("{'asin': 'x'} {", "goes on behind its object at character 14"),
        ("{'asin': __import__('os')}", "not a Python literal"),
        ("{'asin': nan}", "not a Python literal: nan"),
        ("{'asin': " + "9" * 5000 + "}", "not a Python literal: 999"),
        (r"{'asin': '\x'}", "not a Python string"),
        ("{'a': 1 'asin': 2}", "not a Python literal"),
        ("{'a': " + "[" * 13 + "]" * 13 + "}", "not a Python literal of at most 12 levels"),
        ("{'a': " + "[" * 100_000 + "]" * 100_000 + "}", "not a Python literal of at most 12 levels"),
        ("{'a': " + "(" * 100_000, "not a Python literal of at most 12 levels"),
        ("{'a': '" + "\\\\" * 500_000 + "}", "not a Python literal"),
        ("{'" + "a" * (1 << 24), "longer than 16777216 bytes"),
        ("7", "expected a JSON object, got 7"),
    ],
    ids=lambda text: text[:30],
)
def test_what_is_no_object_names_its_line(tmp_path, line, message):
    with pytest.raises(UserError, match=r"meta\.json:2: " + message):
        read(tmp_path, "{'asin': 'x'}", line)


def test_many_entries_take_one_pass(tmp_path):
    """A line of 16 MB with a million fields: quadratic work would take hours."""
    line = "{" + ",".join(f"'{i}': 1" for i in range(1_000_000)) + ", 'asin': 'last'}"
    assert read(tmp_path, line) == [(1, {"asin": "last"})]
