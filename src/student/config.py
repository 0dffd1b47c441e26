"""`conf/student`: the model and how it is trained."""

from dataclasses import dataclass, field

from src.core.errors import check
from src.student.datamodule import LOADERS
from src.student.models import MODELS, NORMS, Caser, ModelConfig, SASRec
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
        batching: one of `datamodule.LOADERS`.
        mixed_precision: forward passes of training in bfloat16, weights stay float32.
        save_interval: epochs between saves of the state that an interrupted training goes on from.
    """

    batch_size: int
    lr: float
    num_epochs: int
    weight_decay: float
    grad_clip: float
    patience: int
    batching: str = "rows"
    mixed_precision: bool = False
    save_interval: int = 1


@dataclass
class StudentConfig:
    """The keys of `conf/student/*.yaml`.

    Attributes:
        loss: base loss, one of `LOSSES`; dros_weight, dros_beta: of `bce_dros`; num_negatives: of `sampled_softmax`.
        num_filters, filter_sizes: Caser's.
        num_blocks: SASRec's blocks, or layers of the GRU; num_heads, norm: SASRec's (`models.Block`).
        tied_output: score items by their input embeddings.
        batching, mixed_precision, save_interval: see `FitSettings`.
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
    num_blocks: int = 1
    num_heads: int = 1
    norm: str = "dllm2rec"
    tied_output: bool = False
    batching: str = "rows"
    mixed_precision: bool = False
    save_interval: int = 1

    def __post_init__(self) -> None:
        check(self.name in MODELS, "student.name", self.name, f"one of {', '.join(MODELS)}")
        sizes = ("emb_size", "hidden_size", "max_seq_len", "num_filters", "num_blocks", "num_heads")
        for key in (*sizes, "batch_size", "num_epochs", "patience", "num_negatives", "save_interval"):
            check(getattr(self, key) >= 1, f"student.{key}", getattr(self, key), "an integer >= 1")
        self._check_caser()
        self._check_options()
        check(0 <= self.dropout < 1, "student.dropout", self.dropout, "a number in [0, 1)")
        check(self.lr > 0, "student.lr", self.lr, "a number > 0")
        check(self.weight_decay >= 0, "student.weight_decay", self.weight_decay, "a number >= 0")
        check(self.loss in LOSSES, "student.loss", self.loss, f"one of {', '.join(LOSSES)}")
        check(self.dros_weight >= 0, "student.dros_weight", self.dros_weight, "a number >= 0")
        check(self.dros_beta > 0, "student.dros_beta", self.dros_beta, "a number > 0")
        check(self.grad_clip >= 0, "student.grad_clip", self.grad_clip, "a number >= 0 (0 is off)")

    def _check_caser(self) -> None:
        if MODELS[self.name] is not Caser:
            check(self.num_filters == 16, "student.num_filters", self.num_filters, "left out: only caser has filters")
            check(self.filter_sizes == [2, 3, 4], "student.filter_sizes", self.filter_sizes, "left out, as above")
        elif not self.filter_sizes or not all(1 <= size <= self.max_seq_len for size in self.filter_sizes):
            allowed = f"one or more integers from 1 to student.max_seq_len={self.max_seq_len}"
            check(False, "student.filter_sizes", self.filter_sizes, allowed)

    def _check_options(self) -> None:
        check(self.norm in NORMS, "student.norm", self.norm, f"one of {', '.join(NORMS)}")
        check(self.batching in LOADERS, "student.batching", self.batching, f"one of {', '.join(LOADERS)}")
        if MODELS[self.name] is Caser:
            check(self.batching == "rows", "student.batching", self.batching, f"rows with student.name={self.name}")
            check(self.num_blocks == 1, "student.num_blocks", self.num_blocks, f"1 with student.name={self.name}")
            check(not self.tied_output, "student.tied_output", True, f"false with student.name={self.name}")
        if MODELS[self.name] is not SASRec:
            check(self.num_heads == 1, "student.num_heads", self.num_heads, f"1 with student.name={self.name}")
            check(self.norm == "dllm2rec", "student.norm", self.norm, f"dllm2rec with student.name={self.name}")
        allowed = f"a divisor of student.hidden_size={self.hidden_size}"
        check(self.hidden_size % self.num_heads == 0, "student.num_heads", self.num_heads, allowed)
        allowed = f"false where student.emb_size={self.emb_size} and student.hidden_size={self.hidden_size} differ"
        check(
            not self.tied_output or self.emb_size == self.hidden_size, "student.tied_output", self.tied_output, allowed
        )

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
            self.num_blocks,
            self.num_heads,
            self.norm,
            self.tied_output,
        )

    def loss_settings(self) -> LossSettings:
        return LossSettings(self.loss, self.dros_weight, self.dros_beta, self.num_negatives)

    def fit_settings(self) -> FitSettings:
        return FitSettings(
            self.batch_size,
            self.lr,
            self.num_epochs,
            self.weight_decay,
            self.grad_clip,
            self.patience,
            self.batching,
            self.mixed_precision,
            self.save_interval,
        )
