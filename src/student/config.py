"""`conf/student`: the model and how it is trained."""

from dataclasses import dataclass

from src.core.errors import check
from src.student.models import MODELS, ModelConfig


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
    """The keys of `conf/student/*.yaml`."""

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

    def __post_init__(self) -> None:
        check(self.name in MODELS, "student.name", self.name, f"one of {', '.join(MODELS)}")
        for key in ("emb_size", "hidden_size", "max_seq_len", "batch_size", "num_epochs", "patience"):
            check(getattr(self, key) >= 1, f"student.{key}", getattr(self, key), "an integer >= 1")
        check(0 <= self.dropout < 1, "student.dropout", self.dropout, "a number in [0, 1)")
        check(self.lr > 0, "student.lr", self.lr, "a number > 0")
        check(self.weight_decay >= 0, "student.weight_decay", self.weight_decay, "a number >= 0")
        check(self.grad_clip >= 0, "student.grad_clip", self.grad_clip, "a number >= 0 (0 is off)")

    def model_config(self, num_items: int) -> ModelConfig:
        return ModelConfig(self.name, num_items, self.emb_size, self.hidden_size, self.max_seq_len, self.dropout)

    def fit_settings(self) -> FitSettings:
        return FitSettings(self.batch_size, self.lr, self.num_epochs, self.weight_decay, self.grad_clip, self.patience)
