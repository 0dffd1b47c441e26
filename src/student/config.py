"""`conf/student`: the model and how it is trained."""

from dataclasses import dataclass, field

from src.core.errors import check
from src.student.models import MODELS, ModelConfig
from src.student.objectives import LOSSES, LossSettings


@dataclass
class FitSettings:
    """One training run.

    Attributes:
        batch_size: rows a step.
        lr: Adam's learning rate.
        num_epochs: at most this many passes over the rows.
        weight_decay: Adam's L2 term.
        grad_clip: largest gradient norm; 0 turns clipping off.
        patience: epochs without a better validation value after which training stops.
    """

    batch_size: int
    lr: float
    num_epochs: int
    weight_decay: float
    grad_clip: float
    patience: int


@dataclass
class StudentConfig:
    """The keys of `conf/student/*.yaml`.

    Attributes:
        loss: base loss, one of `LOSSES`; dros_weight, dros_beta: of `bce_dros`; num_negatives: of `sampled_softmax`.
        num_filters, filter_sizes: Caser's.
    """

    name: str
    emb_size: int = 64
    hidden_size: int = 64
    max_seq_len: int = 50
    dropout: float = 0.1
    batch_size: int = 256
    lr: float = 1e-3
    num_epochs: int = 200
    weight_decay: float = 0.0
    grad_clip: float = 0.0
    patience: int = 10
    loss: str = "ce"
    dros_weight: float = 1.0
    dros_beta: float = 1.0
    num_negatives: int = 256
    num_filters: int = 16
    filter_sizes: list[int] = field(default_factory=lambda: [2, 3, 4])

    def __post_init__(self) -> None:
        check(self.name in MODELS, "student.name", self.name, f"one of {', '.join(MODELS)}")
        sizes = ("emb_size", "hidden_size", "max_seq_len", "num_filters")
        for key in (*sizes, "batch_size", "num_epochs", "patience", "num_negatives"):
            check(getattr(self, key) >= 1, f"student.{key}", getattr(self, key), "an integer >= 1")
        self._check_caser()
        check(0 <= self.dropout < 1, "student.dropout", self.dropout, "a number in [0, 1)")
        check(self.lr > 0, "student.lr", self.lr, "a number > 0")
        check(self.weight_decay >= 0, "student.weight_decay", self.weight_decay, "a number >= 0")
        check(self.loss in LOSSES, "student.loss", self.loss, f"one of {', '.join(LOSSES)}")
        check(self.dros_weight >= 0, "student.dros_weight", self.dros_weight, "a number >= 0")
        check(self.dros_beta > 0, "student.dros_beta", self.dros_beta, "a number > 0")
        check(self.grad_clip >= 0, "student.grad_clip", self.grad_clip, "a number >= 0 (0 is off)")

    def _check_caser(self) -> None:
        if self.name != "caser":
            check(self.num_filters == 16, "student.num_filters", self.num_filters, "left out: only caser has filters")
            check(self.filter_sizes == [2, 3, 4], "student.filter_sizes", self.filter_sizes, "left out, as above")
        elif not self.filter_sizes or not all(1 <= size <= self.max_seq_len for size in self.filter_sizes):
            allowed = f"one or more integers from 1 to student.max_seq_len={self.max_seq_len}"
            check(False, "student.filter_sizes", self.filter_sizes, allowed)

    def model_config(self, num_items: int) -> ModelConfig:
        self._check_caser()  # the window may have been cut to the dataset's since
        return ModelConfig(
            self.name,
            num_items,
            self.emb_size,
            self.hidden_size,
            self.max_seq_len,
            self.dropout,
            self.num_filters,
            self.filter_sizes,
        )

    def loss_settings(self) -> LossSettings:
        return LossSettings(self.loss, self.dros_weight, self.dros_beta, self.num_negatives)

    def fit_settings(self) -> FitSettings:
        return FitSettings(self.batch_size, self.lr, self.num_epochs, self.weight_decay, self.grad_clip, self.patience)
