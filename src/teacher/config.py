"""`conf/teacher`: the LLM, its adapter, its training and what it exports.

Fields that do not decide the trained adapter carry metadata that say what they decide (`src/core/settings.py`).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from src.core.errors import check
from src.core.settings import EVALUATION, EXPORT, NOTHING, UNDERWAY
from src.student.config import SASRecConfig
from src.teacher.prompt.wording import PromptConfig, Wording, read_wording

DTYPES = ("auto", "float32", "bfloat16")
ATTENTIONS = ("auto", "eager", "sdpa")
EXPORT_METHODS = ("likelihood", "generate")
CANDIDATES = ("retrieval", "sampled", "none")
EXPORT_ROWS = ("all", "policy")
CONFIDENCES = ("minmax", "raw")
ENGINES = ("auto", "native", "submodule")
POOLINGS = ("last", "mean")
TITLE = "{title}"  # its place in a wording


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """The adapter: total rank `r` split over `num_experts`, scale alpha / (r / num_experts)."""

    r: int = 8
    alpha: int = 32
    dropout: float = 0.1
    num_experts: int = 4

    def __post_init__(self) -> None:
        for key in ("r", "alpha", "num_experts"):
            check(getattr(self, key) >= 1, f"teacher.lora.{key}", getattr(self, key), "an integer >= 1")
        check(
            self.r % self.num_experts == 0,
            "teacher.lora.num_experts",
            self.num_experts,
            f"a divisor of teacher.lora.r={self.r}",
        )
        check(0 <= self.dropout < 1, "teacher.lora.dropout", self.dropout, "a number in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """What is written for the student.

    Attributes:
        method: `likelihood` ranks the candidates by minus the mean log-probability of their titles;
            `generate` lets the LLM answer and ranks all items by the L2 distance of their
            embeddings to the answer's (BIGRec's grounding).
        candidates: what a prompt offers. `retrieval`: the frozen recommender's best items, so that the target
            plays no part; `sampled`: the target among random items, as iLoRA has it; `none`: nothing.
        top_n: items per row.
        confidence: `minmax` normalises a row's distances over what was ranked, `raw` keeps them.
        batch_tokens: tokens of a forward pass, padding included; bounds the memory.
        rows: `all` training rows, or those that the `active` policy chooses from a baseline student before the export.
        student_checkpoint: folder of that student; null: this run's, else the newest finished one's.
        max_rows: of those rows at most so many, drawn once; null: all of them.
        part: `k/n`: this process ranks the k-th (from 0) of n parts of the rows and ends; independent jobs do one each,
            and the same command without `part` joins them. null: all rows, and the files.
        rankings: false writes the items' embeddings alone.
        embedding_pooling: `last` takes an item's hidden state at its last token, `mean` averages those at its title's
            own tokens.
        embedding_layer: an index into the LLM's hidden states: -1 the last one, 0 the token embeddings.
        embedding_text: a wording with the title in one place.
    """

    method: str = "likelihood"
    candidates: str = "retrieval"
    top_n: int = 10
    confidence: str = "minmax"
    batch_tokens: int = field(default=4096, metadata=NOTHING)
    rows: str = "all"
    student_checkpoint: str | None = None
    max_rows: int | None = None
    part: str | None = field(default=None, metadata=NOTHING)
    rankings: bool = True
    embedding_pooling: str = "last"
    embedding_layer: int = -1
    embedding_text: str = TITLE

    def __post_init__(self) -> None:
        check(self.method in EXPORT_METHODS, "teacher.export.method", self.method, _one_of(EXPORT_METHODS))
        check(self.confidence in CONFIDENCES, "teacher.export.confidence", self.confidence, _one_of(CONFIDENCES))
        check(self.top_n >= 1, "teacher.export.top_n", self.top_n, "an integer >= 1")
        check(self.rows in EXPORT_ROWS, "teacher.export.rows", self.rows, _one_of(EXPORT_ROWS))
        folder, given = self.student_checkpoint, self.rows == "policy"
        check(given or folder is None, "teacher.export.student_checkpoint", folder, "null with teacher.export.rows=all")
        check(self.batch_tokens >= 1, "teacher.export.batch_tokens", self.batch_tokens, "an integer >= 1")
        rows, pooling = self.max_rows, self.embedding_pooling
        check(rows is None or rows >= 1, "teacher.export.max_rows", rows, "null (all) or an integer >= 1")
        check(pooling in POOLINGS, "teacher.export.embedding_pooling", pooling, _one_of(POOLINGS))
        wording = self.embedding_text
        check(wording.count(TITLE) == 1, "teacher.export.embedding_text", wording, f"a text with {TITLE} in one place")
        self._check_part()
        allowed = CANDIDATES if self.method == "generate" else CANDIDATES[:2]
        check(
            self.candidates in allowed,
            "teacher.export.candidates",
            self.candidates,
            f"{_one_of(allowed)} with teacher.export.method={self.method}"
            + ("" if self.method == "generate" else ", which ranks what the prompt offers"),
        )

    def _check_part(self) -> None:
        allowed = "null, or k/n for part k of n, counted from 0, such as 0/8"
        number, total = self.part_of
        check(0 <= number < total, "teacher.export.part", self.part, allowed)
        alone = "null with teacher.export.rankings=false, which ranks no rows that jobs could share"
        check(self.part is None or self.rankings, "teacher.export.part", self.part, alone)

    @property
    def part_of(self) -> tuple[int, int]:
        """Number of this part and of all; (0, 0) for what is no part."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", "0/1" if self.part is None else self.part, re.ASCII)
        return (int(found[1]), int(found[2])) if found else (0, 0)


@dataclass(frozen=True, kw_only=True)
class TinySettings:
    """A LLaMA that is built here from the dataset's titles and pretrained for `pretrain_steps` steps.

    Attributes:
        vocab_size: pieces for texts other than titles and the prompts' words, which are one piece each.
    """

    vocab_size: int = 600
    hidden_size: int = 128
    num_layers: int = 3
    num_heads: int = 2
    pretrain_steps: int = 500
    pretrain_batch_size: int = 16
    pretrain_lr: float = 1e-3

    def __post_init__(self) -> None:
        least = {"hidden_size": 16, "num_layers": 3, "num_heads": 2, "pretrain_steps": 1, "pretrain_batch_size": 1}
        for key, value in least.items():  # start.py writes two heads in three layers
            check(getattr(self, key) >= value, f"teacher.tiny.{key}", getattr(self, key), f"an integer >= {value}")
        check(
            self.vocab_size >= 300,
            "teacher.tiny.vocab_size",
            self.vocab_size,
            "an integer >= 300 (256 are bytes)",
        )
        check(self.pretrain_lr > 0, "teacher.tiny.pretrain_lr", self.pretrain_lr, "a number > 0")
        check(
            self.hidden_size % (4 * self.num_heads) == 0,
            "teacher.tiny.num_heads",
            self.num_heads,
            f"a number whose fourfold divides teacher.tiny.hidden_size={self.hidden_size}",
        )


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The keys of `conf/teacher/*.yaml`.

    Attributes:
        name: the YAML's, for reports.
        llm_path: local Hugging Face folder of a LLaMA-family model, or the id of one on the hub; null where `tiny`
            builds one. Not the path but what lies there decides (`llm.folder.llm_digest`).
        llm_revision: branch, tag or commit on the hub; null: its main branch.
        engine: `native` is iLoRA on stock `peft`, `submodule` drives iLoRA's own code; `auto` takes the submodule
            where it is checked out, else native.
        init_adapter: an adapter's folder, or a checkpoint of upstream's training, to start from; null starts afresh.
        rec_model_path: folder of a student checkpoint, or upstream's pickled `.pt`, that serves as frozen recommender;
            null trains one.
        batch_size: rows per optimizer step (micro-batches accumulate up to it).
        prompt_template: the wording, a file of `conf/teacher/prompt` or of one's own. Not its name but the texts
            decide, `wording`.
        prompt: what is to differ from it.
        max_history: titles of the history in a prompt, the last ones.
        max_train_rows: rows the teacher trains on, drawn once; null takes all. The rankings of the others are
            out-of-sample.
        max_valid_rows: validation rows that are answered after each epoch to find the best one, drawn once;
            null takes all.
        max_eval_rows: test rows the teacher is evaluated on, drawn once; null takes all.
        num_epochs: 0 leaves the adapter as it begins: an LLM that has learnt nothing from the training rows.
        dtype: of the LLM; `auto` is bfloat16 where the device computes it natively, else float32.
        attn_implementation: as transformers has it; `auto` lets it choose.
        load_in_4bit: the frozen LLM in four bits a weight, by bitsandbytes.
        save_interval: epochs between saves of the state that an interrupted training goes on from; save_steps: the
            same in optimizer steps, whichever comes first.
        recommender: how the frozen recommender is trained.
    """

    name: str
    llm_path: str | None = field(default=None, metadata=NOTHING)
    llm_revision: str | None = field(default=None, metadata=NOTHING)
    engine: str = "auto"
    init_adapter: str | None = None
    rec_model_path: str | None = None
    prompt_template: str = field(default="default", metadata=NOTHING)
    prompt: PromptConfig = field(default_factory=PromptConfig, metadata=NOTHING)
    max_history: int = 10
    num_candidates: int = 20
    max_train_rows: int | None = None
    max_valid_rows: int | None = None
    max_eval_rows: int | None = field(default=None, metadata=EVALUATION)
    batch_size: int = 64
    micro_batch_size: int = field(default=8, metadata=UNDERWAY)
    lr: float = 1e-4
    weight_decay: float = 1e-5
    num_epochs: int = 5
    save_interval: int = field(default=1, metadata=NOTHING)
    save_steps: int = field(default=500, metadata=NOTHING)
    dtype: str = "bfloat16"
    attn_implementation: str = field(default="auto", metadata=NOTHING)
    load_in_4bit: bool = False
    gradient_checkpointing: bool = field(default=True, metadata=NOTHING)
    lora: LoraSettings = field(default_factory=LoraSettings)
    recommender: SASRecConfig = field(default_factory=lambda: SASRecConfig(name="sasrec"))
    export: ExportSettings = field(default_factory=ExportSettings, metadata=EXPORT)
    tiny: TinySettings | None = None

    def __post_init__(self) -> None:
        _ = self.wording  # checked now
        check(self.engine in ENGINES, "teacher.engine", self.engine, _one_of(ENGINES))
        check(self.dtype in DTYPES, "teacher.dtype", self.dtype, _one_of(DTYPES))
        attention = self.attn_implementation
        why = "; flash_attention_2 does not take the mask with which the candidates are scored in one pass" * (
            attention == "flash_attention_2"
        )
        check(attention in ATTENTIONS, "teacher.attn_implementation", attention, _one_of(ATTENTIONS) + why)
        check(self.num_epochs >= 0, "teacher.num_epochs", self.num_epochs, "an integer >= 0 (0: untrained)")
        for key in ("max_history", "batch_size", "micro_batch_size", "save_interval", "save_steps"):
            check(getattr(self, key) >= 1, f"teacher.{key}", getattr(self, key), "an integer >= 1")
        for key in ("max_train_rows", "max_valid_rows", "max_eval_rows"):
            value = getattr(self, key)
            check(value is None or value >= 1, f"teacher.{key}", value, "null (all) or an integer >= 1")
        check(self.num_candidates >= 2, "teacher.num_candidates", self.num_candidates, "an integer >= 2")
        check(self.lr > 0, "teacher.lr", self.lr, "a number > 0")
        check(self.weight_decay >= 0, "teacher.weight_decay", self.weight_decay, "a number >= 0")
        self._check_what_goes_together()

    def _check_what_goes_together(self) -> None:
        check(
            self.tiny is None or self.llm_path is None,
            "teacher.llm_path",
            self.llm_path,
            "null with teacher=ilora_tiny, which builds its LLaMA; teacher=ilora takes one that exists",
        )
        check(
            self.tiny is None or self.llm_revision is None,
            "teacher.llm_revision",
            self.llm_revision,
            "null with teacher=ilora_tiny, which builds its LLaMA",
        )
        check(
            not self.load_in_4bit or self.engine == "native",
            "teacher.engine",
            self.engine,
            "native with teacher.load_in_4bit=true, whose layers iLoRA's own code does not adapt",
        )
        check(
            self.batch_size % self.micro_batch_size == 0,
            "teacher.micro_batch_size",
            self.micro_batch_size,
            f"a divisor of teacher.batch_size={self.batch_size}",
        )
        check(
            self.export.method == "generate" or self.export.top_n <= self.num_candidates,
            "teacher.export.top_n",
            self.export.top_n,
            f"at most teacher.num_candidates={self.num_candidates} with export.method=likelihood",
        )

    @cached_property
    def wording(self) -> Wording:
        """The prompts' wording, read once."""
        return read_wording(self.prompt_template, self.prompt)

    @property
    def reads_items(self) -> bool:
        """Whether prompts carry item embeddings: a projector that was never trained would put noise among the words."""
        return self.num_epochs > 0 or self.init_adapter is not None


def _one_of(names: Iterable[str]) -> str:
    return "one of " + ", ".join(names)
