"""`conf/student`: one dataclass per kind of model, with how it is trained."""

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, TypeVar

from src.core.errors import check
from src.core.settings import NOTHING

LOSSES = ("ce", "bce", "bce_dros", "sampled_softmax")
NEGATIVES = ("uniform", "popular")
NORMS = ("dllm2rec", "pre", "post")
SCORES = ("dot", "cosine")
BATCHINGS = ("rows", "packed")
LR_SCHEDULES = ("constant", "linear")
Target = TypeVar("Target", "ModelConfig", "LossSettings", "FitSettings")


@dataclass(frozen=True)
class ModelConfig:
    """What a checkpoint needs to rebuild its model.

    `emb_size` is the width of the item table, `hidden_size` the width inside the model; a linear map joins
    them where they differ. `max_seq_len` is the number of last items that the model looks at. `num_filters` and
    `filter_sizes` are Caser's: horizontal filters of each height, and the heights. `num_blocks` counts SASRec's blocks
    or the GRU's layers; `num_heads` and `norm` (one of `NORMS`) are SASRec's. `tied_output` scores items by their
    input embeddings. `scores` is one of `SCORES`, SASRec's, as `temperature`, which divides cosines.
    """

    name: str
    num_items: int
    emb_size: int
    hidden_size: int
    max_seq_len: int
    dropout: float
    num_filters: int = 16
    filter_sizes: tuple[int, ...] = (2, 3, 4)
    num_blocks: int = 1
    num_heads: int = 1
    norm: str = "dllm2rec"
    tied_output: bool = False
    scores: str = "dot"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "filter_sizes", tuple(self.filter_sizes))  # JSON makes lists of tuples

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class LossSettings:
    """Which base loss, and its numbers.

    Attributes:
        name: one of `LOSSES`.
        dros_weight: weight of the DROS term in `bce_dros`; dros_beta: its robustness radius.
        num_negatives: items that stand for the catalogue in `sampled_softmax`; negatives: how they are drawn, one of
            `NEGATIVES`, `popular` half uniformly and half as often as they are targets.
        loss_chunk: targets whose scores of all items `ce` holds at a time; None: chosen by the number of items.
    """

    name: str
    dros_weight: float = 1.0
    dros_beta: float = 1.0
    num_negatives: int = 256
    negatives: str = "uniform"
    loss_chunk: int | None = None


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """One training run.

    Attributes:
        batch_size: rows a step.
        lr: Adam's learning rate; lr_schedule: it stays (`constant`), or falls by the same amount each step to 0 after
            `num_epochs` (`linear`).
        num_epochs: at most this many passes over the rows.
        weight_decay: Adam's L2 term.
        grad_clip: largest gradient norm; 0 turns clipping off.
        patience: epochs without a better validation value after which training stops.
        batching: one of `BATCHINGS`.
        mixed_precision: forward passes of training in bfloat16, weights stay float32.
        save_interval: epochs between saves of the state that an interrupted training goes on from.
    """

    batch_size: int
    lr: float
    num_epochs: int
    weight_decay: float
    grad_clip: float
    patience: int
    lr_schedule: str = "constant"
    batching: str = "rows"
    mixed_precision: bool = False
    save_interval: int = 1


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """What all kinds of students share; `SCHEMAS` names the kinds.

    Attributes:
        name: the YAML's, a key of `models.MODELS`.
        emb_size: width of the item table; hidden_size: width inside the model.
        max_seq_len: last items that the model reads; see `fit_window`.
        loss: base loss, one of `LOSSES`; dros_weight, dros_beta: of `bce_dros`; num_negatives, negatives (one of
            `NEGATIVES`): of `sampled_softmax`; loss_chunk: of `ce`, see `LossSettings`.
        max_valid_rows: validation rows that are ranked after each epoch to find the best one, drawn once, the same for
            every student of a data set; None: all.
        batch_size, lr, lr_schedule, num_epochs, weight_decay, grad_clip, patience, mixed_precision, save_interval:
            see `FitSettings`.
    """

    names: ClassVar[tuple[str, ...]]
    at_least_one: ClassVar[tuple[str, ...]] = (
        "emb_size",
        "hidden_size",
        "max_seq_len",
        "batch_size",
        "num_epochs",
        "patience",
        "num_negatives",
        "save_interval",
    )

    name: str
    emb_size: int = 64
    hidden_size: int = 64
    max_seq_len: int = 50
    dropout: float = 0.1
    batch_size: int = 256
    lr: float = 1e-3
    lr_schedule: str = "constant"
    num_epochs: int = 200
    weight_decay: float = 0.0
    grad_clip: float = 0.0
    patience: int = 10
    mixed_precision: bool = False
    loss: str = "ce"
    dros_weight: float = 1.0
    dros_beta: float = 1.0
    num_negatives: int = 256
    negatives: str = "uniform"
    loss_chunk: int | None = field(default=None, metadata=NOTHING)
    max_valid_rows: int | None = None
    save_interval: int = field(default=1, metadata=NOTHING)

    def __post_init__(self) -> None:
        check(self.name in self.names, "student.name", self.name, f"one of {', '.join(self.names)}")
        for key in self.at_least_one:
            check(getattr(self, key) >= 1, f"student.{key}", getattr(self, key), "an integer >= 1")
        for key, meaning in (("loss_chunk", "by the number of items"), ("max_valid_rows", "all")):
            value = getattr(self, key)
            check(value is None or value >= 1, f"student.{key}", value, f"null ({meaning}) or an integer >= 1")
        check(0 <= self.dropout < 1, "student.dropout", self.dropout, "a number in [0, 1)")
        check(self.lr > 0, "student.lr", self.lr, "a number > 0")
        schedules = f"one of {', '.join(LR_SCHEDULES)}"
        check(self.lr_schedule in LR_SCHEDULES, "student.lr_schedule", self.lr_schedule, schedules)
        check(self.weight_decay >= 0, "student.weight_decay", self.weight_decay, "a number >= 0")
        check(self.loss in LOSSES, "student.loss", self.loss, f"one of {', '.join(LOSSES)}")
        check(self.negatives in NEGATIVES, "student.negatives", self.negatives, f"one of {', '.join(NEGATIVES)}")
        check(self.dros_weight >= 0, "student.dros_weight", self.dros_weight, "a number >= 0")
        check(self.dros_beta > 0, "student.dros_beta", self.dros_beta, "a number > 0")
        check(self.grad_clip >= 0, "student.grad_clip", self.grad_clip, "a number >= 0 (0 is off)")

    def valid_sample(self, num_rows: int) -> str:
        """What validation numbers are of, where that is not all of `num_rows` rows; else empty."""
        count = self.max_valid_rows
        return "" if count is None or count >= num_rows else f"a fixed sample of {count:,} of {num_rows:,} rows"

    def model_config(self, num_items: int) -> ModelConfig:
        return self._as(ModelConfig, num_items=num_items)

    def loss_settings(self) -> LossSettings:
        return self._as(LossSettings, name=self.loss)

    def fit_settings(self) -> FitSettings:
        return self._as(FitSettings)

    def _as(self, target: type[Target], **given: Any) -> Target:
        """`target` with what is given, its fields that this kind has, and its own defaults for the others."""
        own = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        taken = {entry.name: own[entry.name] for entry in fields(target) if entry.name in own}
        return target(**{**taken, **given})


@dataclass(frozen=True, kw_only=True)
class CausalConfig(StudentConfig):
    """Students that represent a user after every item of a window, so that one pass can train all its positions.

    Attributes:
        num_blocks: SASRec's blocks, or layers of the GRU.
        tied_output: score items by their input embeddings.
        batching: `rows`, a window per target, or `packed`, one for all targets of a window.
    """

    at_least_one: ClassVar[tuple[str, ...]] = (*StudentConfig.at_least_one, "num_blocks")

    num_blocks: int = 1
    tied_output: bool = False
    batching: str = "rows"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.batching in BATCHINGS, "student.batching", self.batching, f"one of {', '.join(BATCHINGS)}")
        allowed = f"false where student.emb_size={self.emb_size} and student.hidden_size={self.hidden_size} differ"
        can_tie = self.emb_size == self.hidden_size
        check(can_tie or not self.tied_output, "student.tied_output", self.tied_output, allowed)


@dataclass(frozen=True, kw_only=True)
class SASRecConfig(CausalConfig):
    """`sasrec`, and `sasrec_plus` with other values.

    Attributes:
        num_blocks: 0 leaves out attention (`models.RecencyMixing`).
        num_heads: attention heads; norm: where the LayerNorms stand (`models.Block`).
        scores: `dot` products and a bias, or `cosine` divided by `temperature`.
    """

    names: ClassVar[tuple[str, ...]] = ("sasrec", "sasrec_plus")
    at_least_one: ClassVar[tuple[str, ...]] = (*StudentConfig.at_least_one, "num_heads")

    num_heads: int = 1
    norm: str = "dllm2rec"
    scores: str = "dot"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.num_blocks >= 0, "student.num_blocks", self.num_blocks, "an integer >= 0")
        check(self.scores in SCORES, "student.scores", self.scores, f"one of {', '.join(SCORES)}")
        check(self.temperature > 0, "student.temperature", self.temperature, "a number > 0")
        applies = self.scores == "cosine" or self.temperature == 1
        check(applies, "student.temperature", self.temperature, "1 with student.scores=dot: it divides cosines")
        check(self.norm in NORMS, "student.norm", self.norm, f"one of {', '.join(NORMS)}")
        allowed = f"a divisor of student.hidden_size={self.hidden_size}"
        check(self.hidden_size % self.num_heads == 0, "student.num_heads", self.num_heads, allowed)


@dataclass(frozen=True, kw_only=True)
class GRU4RecConfig(CausalConfig):
    """`gru4rec`."""

    names: ClassVar[tuple[str, ...]] = ("gru4rec",)


@dataclass(frozen=True, kw_only=True)
class CaserConfig(StudentConfig):
    """`caser`.

    Attributes:
        num_filters: horizontal filters of each height; filter_sizes: the heights.
    """

    names: ClassVar[tuple[str, ...]] = ("caser",)
    at_least_one: ClassVar[tuple[str, ...]] = (*StudentConfig.at_least_one, "num_filters")

    num_filters: int = 16
    filter_sizes: list[int] = field(default_factory=lambda: [2, 3, 4])

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = len(self.filter_sizes) > 0 and all(1 <= size <= self.max_seq_len for size in self.filter_sizes)
        allowed = f"one or more integers from 1 to student.max_seq_len={self.max_seq_len}"
        check(fits, "student.filter_sizes", self.filter_sizes, allowed)


KINDS = (SASRecConfig, GRU4RecConfig, CaserConfig)
SCHEMAS: dict[str, type[StudentConfig]] = {name: kind for kind in KINDS for name in kind.names}


def fit_window(student: StudentConfig, dataset_max_seq_len: int) -> StudentConfig:
    """The student with its window cut to the data set's, where that is shorter.

    Raises:
        UserError: Caser's filters are higher than the window that is left.
    """
    return replace(student, max_seq_len=min(student.max_seq_len, dataset_max_seq_len))
