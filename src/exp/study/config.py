"""`conf/study`: variants of a distillation, for which seeds, and how their results are drawn."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from src.core.datasets.base import check_label
from src.core.errors import UserError, check

PLOTS = ("points", "curve")
BASELINE = "baseline"  # the variant that every study trains: the student alone


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """A question that several trainings answer: variants x seeds, each compared with the baseline of its seeds.

    Attributes:
        name: names the table's files; as the names of variants, of letters, digits, `.`, `_` and `-`.
        question: heads the page.
        run_dir: run folder of a finished distillation whose settings the variants start from; null: the settings of
            this command alone.
        variants: by name, the overrides that make it from there.
        grid: axes whose combinations are variants, too: by name either {<value>: [overrides]} or {key: <a key of the
            configuration>, values: [...]}.
        plot: `points`: each variant's metric; `curve`: the metric against the last axis of the grid, a line for each
            value of the others.
        ends: of a curve: variants that belong to every line, and where on its axis.
        leader: a variant that is compared with each other, too, not the baseline alone.
    """

    name: str
    question: str
    run_dir: str | None = None
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    variants: dict[str, list[str]] = field(default_factory=dict)
    grid: dict[str, Any] = field(default_factory=dict)
    plot: str = "points"
    ends: dict[str, float] = field(default_factory=dict)
    leader: str | None = None

    def __post_init__(self) -> None:
        check_label("study.name", self.name)
        for name in self.variants:
            check_label("study.variants", name)
        check(len(self.seeds) == len(set(self.seeds)) > 0, "study.seeds", self.seeds, "one or more different integers")
        check(all(0 <= s < 2**31 for s in self.seeds), "study.seeds", self.seeds, "integers from 0 to 2**31 - 1")
        check(self.plot in PLOTS, "study.plot", self.plot, f"one of {', '.join(PLOTS)}")
        check(
            self.plot != "curve" or bool(self.grid), "study.grid", self.grid, "one or more axes with study.plot=curve"
        )
        check(set(self.ends) <= set(self.variants), "study.ends", self.ends, f"of {', '.join(self.variants)}")
        check(
            BASELINE not in self.variants, "study.variants", list(self.variants), f"without {BASELINE}, which is added"
        )
        allowed = f"null or one of study.variants ({', '.join(self.variants) or 'none'})"
        check(self.leader is None or self.leader in self.variants, "study.leader", self.leader, allowed)
        for name, axis in self.grid.items():
            _check_axis(name, axis)

    def axis_values(self, name: str) -> dict[str, list[str]]:
        """Overrides by value of an axis of the grid."""
        axis = self.grid[name]
        if "values" in axis:
            return {str(value): [f"{axis['key']}={value}"] for value in axis["values"]}
        return {str(value): list(overrides) for value, overrides in axis.items()}


def _check_axis(name: str, axis: Any) -> None:
    allowed = "{<value>: [overrides], ...} or {key: <key>, values: [...]}"
    if not isinstance(axis, Mapping) or not axis:
        raise UserError(f"study.grid.{name}={axis!r}: must be {allowed}")
    by_key = "values" in axis or "key" in axis
    if by_key and not (set(axis) == {"key", "values"} and axis["values"]):
        raise UserError(f"study.grid.{name}={dict(axis)!r}: must be {allowed}, with one or more values")
    if by_key:
        different = len({str(value) for value in axis["values"]}) == len(axis["values"])
        check(different, f"study.grid.{name}.values", list(axis["values"]), "different values")


@dataclass(frozen=True, kw_only=True)
class GatherConfig:
    """`gather`: a sweep to tabulate."""

    sweep_dir: str | None = None
