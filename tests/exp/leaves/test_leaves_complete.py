"""Every leaf of `conf/` has an effect that a file beside this one shows, and every effect is of a leaf."""

import importlib
from collections import Counter
from pathlib import Path

from leaves_table import EXPERIMENT_LEAVES, LEAVES

TABLES = {
    path.stem: importlib.import_module(path.stem).EFFECTS
    for path in Path(__file__).parent.glob("test_leaves_*.py")
    if path.stem != Path(__file__).stem
}
ENTRIES = Counter(entry for table in TABLES.values() for entry in table)


def test_every_leaf_has_an_entry() -> None:
    assert [f"{leaf.file}:{leaf.key}" for leaf in LEAVES if leaf.entry(ENTRIES) not in ENTRIES] == []


def test_every_entry_has_a_leaf() -> None:
    assert sorted(ENTRIES.keys() - {leaf.entry(ENTRIES) for leaf in LEAVES}) == []


def test_no_entry_stands_in_two_tables() -> None:
    """Nor does a file's own entry stand in another table than that of its key, where the case would be tried twice."""
    assert [entry for entry, number in ENTRIES.items() if number > 1] == []
    for table in TABLES.values():
        apart = [entry for entry in table if ":" in entry and entry.split(":")[1] in ENTRIES.keys() - table.keys()]
        assert apart == []


def test_an_experiment_only_sets_leaves_of_the_groups() -> None:
    assert EXPERIMENT_LEAVES
    assert {leaf.key for leaf in EXPERIMENT_LEAVES} <= {leaf.key for leaf in LEAVES}
