"""`conf/active`: one dataclass per strategy; `selection_policy.POLICIES` has what each does."""

from dataclasses import dataclass, replace

from src.core.errors import check

BUDGETS = ("batch", "epoch")
MEASURES = ("student_entropy", "student_loss", "teacher_confidence", "disagreement")


@dataclass(frozen=True, kw_only=True)
class ActiveConfig:
    """The keys that every `conf/active/*.yaml` has; `SCHEMAS` has those of each strategy.

    Attributes:
        name: the YAML's, the same as `strategy`.
        strategy: chooses the policy: `all`, `random`, `uncertainty`, `coverage`, `meta`, or one of your own.
        budget_ratio: share of the rows that have a teacher.
    """

    name: str
    strategy: str
    budget_ratio: float = 1.0

    def __post_init__(self) -> None:
        check(self.name == self.strategy, "active.name", self.name, f"active.strategy ({self.strategy})")
        allowed = "a number above 0 and at most 1"
        check(0 < self.budget_ratio <= 1, "active.budget_ratio", self.budget_ratio, allowed)

    @property
    def description(self) -> str:
        """What chooses, in words, for logs and manifests."""
        return self.strategy

    def comparing_all_rows(self) -> "ActiveConfig":
        """The settings under which rows of different batches compete for one budget."""
        return self


@dataclass(frozen=True, kw_only=True)
class AllConfig(ActiveConfig):
    """`active=all`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = "1.0, because `all` leaves none out"
        check(self.budget_ratio == 1.0, "active.budget_ratio", self.budget_ratio, allowed)


@dataclass(frozen=True, kw_only=True)
class UncertaintyConfig(ActiveConfig):
    """`active=uncertainty`.

    Attributes:
        measure: one of `MEASURES`; budget_per: one of `BUDGETS`, the rows among which it is compared.
    """

    measure: str
    budget_per: str

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.measure in MEASURES, "active.measure", self.measure, f"one of {', '.join(MEASURES)}")
        check(self.budget_per in BUDGETS, "active.budget_per", self.budget_per, "batch or epoch")

    @property
    def description(self) -> str:
        return f"{self.strategy} by {self.measure}"

    def comparing_all_rows(self) -> "UncertaintyConfig":
        return replace(self, budget_per="epoch")


@dataclass(frozen=True, kw_only=True)
class MetaConfig(ActiveConfig):
    """`active=meta`; its `budget_ratio` is the mean weight.

    Attributes:
        validation_batch_size: validation rows that a step looks at; validation_temperature: what divides their scores.
    """

    validation_batch_size: int
    validation_temperature: float

    def __post_init__(self) -> None:
        super().__post_init__()
        rows, temperature = self.validation_batch_size, self.validation_temperature
        check(rows >= 1, "active.validation_batch_size", rows, "an integer >= 1")
        check(temperature > 0, "active.validation_temperature", temperature, "a number above 0")


SCHEMAS: dict[str, type[ActiveConfig]] = {
    "all": AllConfig,
    "random": ActiveConfig,
    "uncertainty": UncertaintyConfig,
    "coverage": ActiveConfig,
    "meta": MetaConfig,
}
