"""`conf/distill`: what a student learns from a teacher, and how."""

from dataclasses import dataclass, field, replace

from src.core.errors import UserError, check
from src.core.settings import IN_STUDENT, NOTHING, key_of
from src.student.config import LOSSES, StudentConfig

PRESETS = ("dllm2rec", "dllm2rec_official", "dllm2rec_paper")
CANDIDATE_LOSSES = ("paper", "official", "softmax")
DROS_AVERAGES = ("batch", "row")
AVERAGES = ("batch", "selected")
CONFIDENCES = ("per_candidate", "per_sequence")
EMBEDDING_MODES = ("fuse", "align", "residual", "init")
EMBEDDING_TRANSFORMS = ("none", "whiten")
INITS = ("scratch", "baseline")
TEACHERS = ("files", "recommender", "random", "tfidf", "shuffled")
_WITHOUT_FILES = ("recommender", "tfidf")
EMBEDDING_FILES = (".npy", ".pt")
RANKINGS = ("exported", "similarity", "blend")
TEACHER_TABLES = ("float32", "bfloat16", "cpu")
ENGINES = ("native", "submodule")
_LOSSES_WITH_NEGATIVES = ("bce", "bce_dros")
_CHOICES = {
    "name": PRESETS,
    "engine": ENGINES,
    "teacher": TEACHERS,
    "ranking": RANKINGS,
    "candidate_loss": CANDIDATE_LOSSES,
    "dros_average": DROS_AVERAGES,
    "average_over": AVERAGES,
    "confidence": CONFIDENCES,
    "embedding": EMBEDDING_MODES,
    "embedding_transform": EMBEDDING_TRANSFORMS,
    "teacher_table": TEACHER_TABLES,
    "init": INITS,
}
_IN_THE_STUDENTS_WIDTH = ("residual", "init")
_WEIGHTS = ("alpha", "ed_weight", "gamma_position", "gamma_confidence", "gamma_consistency")


@dataclass(frozen=True)
class RankingWeights:
    """How the three weights of a teacher's candidate are mixed (gamma in the upstream code).

    `temperature` divides the distances; upstream has 1.
    """

    position: float
    confidence: float
    consistency: float
    temperature: float = 1.0


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """The keys of `conf/distill/*.yaml`; `kd_weight` stands for the key `lambda`, a reserved word.

    total = base loss + lambda * (alpha * ranking [+ ed_weight * alignment]), the alignment with `embedding=align` only:
    otherwise ed_weight scales the teacher's embeddings inside the model (`fusion`). With `candidate_loss=official`,
    alpha is upstream's: the weight of DROS, in the base loss and for each candidate; the ranking's own weight is 1.

    Attributes:
        name: the YAML's, for reports.
        engine: this framework, or the original program (`dllm2rec_wrapper`).
        teacher: who teaches: the exported files of the LLM, or a control (`control_teachers`): the frozen recommender
            that it reads, noise of the shapes of its files, words of the titles without a language model, its files
            with each item given another's text.
        recommenders: of `teacher=recommender`: folders of several students' checkpoints, whose mean probabilities
            teach; none: the frozen recommender alone.
        embeddings_file: item embeddings of the user's own, in place of those among the teacher's files.
        ranking: `exported`, or the Markov chain of the training rows and beside it the `similarity` of the teacher's
            embeddings, or the frozen recommender's scores (`blend`); similarity_weight: of the second beside the first,
            None: chosen on validation rows.
        teacher_table: where and as what the teacher's embeddings are kept while training (`fusion.TeacherTable`).
        loss: base loss, one of `LOSSES`; None takes the student's.
        candidate_loss: loss of one candidate of the teacher.
        dros_average: of `candidate_loss=official`: over what its DROS terms are averaged before they are weighted, the
            rows of the batch, as upstream's code comes to do, or the row alone (`kd_losses.average_over_batch`).
        average_over: what the distillation loss of a batch is divided by: its rows, so that a share of them is a share
            of the loss, or the weights of those that are distilled, which then stand for all
            (`kd_losses.standing_for_all`).
        confidence: a distance per candidate or one per row; confidence_temperature divides it, so that a small one
            trusts the nearest candidates alone.
        embedding: how the teacher's embeddings enter: projected and added (`fuse`), as a loss (`align`), fixed with a
            learnt ID vector added (`residual`), or as the tables' start (`init`).
        embedding_transform: what is done to them once, before training (`fusion.whiten`).
        embedding_dims: their width after whitening; None: the student's `emb_size`, with zeros where they vary in fewer
            directions.
        init_checkpoint: folder of the student that `init=baseline` starts from; None: the caller finds one.
    """

    name: str
    engine: str = "native"
    teacher: str = "files"
    recommenders: list[str] = field(default_factory=list, metadata=NOTHING)
    embeddings_file: str | None = field(default=None, metadata=NOTHING)
    ranking: str = "exported"
    similarity_weight: float | None = None
    alpha: float = 0.5
    ed_weight: float = 0.3
    kd_weight: float = field(default=0.7, metadata=key_of("lambda"))
    batch_size: int = field(default=256, metadata=IN_STUDENT)
    lr: float = field(default=1e-3, metadata=IN_STUDENT)
    num_epochs: int = field(default=200, metadata=IN_STUDENT)
    top_k: int = 10
    gamma_position: float = 0.3
    gamma_confidence: float = 0.5
    gamma_consistency: float = 0.1
    loss: str | None = field(default=None, metadata=IN_STUDENT)
    candidate_loss: str = "paper"
    dros_average: str = "batch"
    average_over: str = "batch"
    confidence: str = "per_candidate"
    confidence_temperature: float = 1.0
    embedding: str = "fuse"
    embedding_transform: str = "none"
    embedding_dims: int | None = None
    teacher_table: str = "float32"
    init: str = "scratch"
    init_checkpoint: str | None = field(default=None, metadata=NOTHING)

    def __post_init__(self) -> None:
        for key, choices in _CHOICES.items():
            check(getattr(self, key) in choices, f"distill.{key}", getattr(self, key), f"one of {', '.join(choices)}")
        losses = f"one of {', '.join(LOSSES)}, or null"
        check(self.loss is None or self.loss in LOSSES, "distill.loss", self.loss, losses)
        for key in _WEIGHTS:
            check(getattr(self, key) >= 0, f"distill.{key}", getattr(self, key), "a number >= 0")
        check(self.kd_weight >= 0, "distill.lambda", self.kd_weight, "a number >= 0")
        for key in ("batch_size", "num_epochs", "top_k"):
            check(getattr(self, key) >= 1, f"distill.{key}", getattr(self, key), "an integer >= 1")
        check(self.lr > 0, "distill.lr", self.lr, "a number > 0")
        temperature = self.confidence_temperature
        check(temperature > 0, "distill.confidence_temperature", temperature, "a number > 0")
        self._check_together()

    def _check_together(self) -> None:
        allowed = f"[] with distill.teacher={self.teacher}; recommender takes folders"
        check(
            not self.recommenders or self.teacher == "recommender", "distill.recommenders", self.recommenders, allowed
        )
        file = self.embeddings_file
        named = file is None or file.endswith(EMBEDDING_FILES)
        check(named, "distill.embeddings_file", file, f"null or a file {' or '.join(EMBEDDING_FILES)}")
        allowed = f"null with distill.teacher={self.teacher}, which has its own"
        check(file is None or self.reads_files, "distill.embeddings_file", file, allowed)
        allowed = "above 0 if the two other gammas are 0"
        gammas = self.gamma_position + self.gamma_confidence + self.gamma_consistency
        check(gammas > 0, "distill.gamma_position", self.gamma_position, allowed)
        applies = self.candidate_loss == "official" or self.dros_average == "batch"
        allowed = f"batch with distill.candidate_loss={self.candidate_loss}, which has no DROS"
        check(applies, "distill.dros_average", self.dros_average, allowed)
        weight = self.similarity_weight
        check(weight is None or weight >= 0, "distill.similarity_weight", weight, "null or a number >= 0")
        allowed = "null with distill.ranking=exported"
        check(weight is None or self.ranking != "exported", "distill.similarity_weight", weight, allowed)
        applies = self.ranking != "blend" or self.teacher == "recommender"
        allowed = f"exported or similarity with distill.teacher={self.teacher}; blend needs recommender"
        check(applies, "distill.ranking", self.ranking, allowed)
        dims, whitens = self.embedding_dims, self.embedding_transform == "whiten"
        check(dims is None or dims >= 1, "distill.embedding_dims", dims, "null (student.emb_size) or an integer >= 1")
        check(whitens or dims is None, "distill.embedding_dims", dims, "null with distill.embedding_transform=none")
        applies = self.teacher_table == "float32" or self.embedding not in _IN_THE_STUDENTS_WIDTH
        allowed = f"float32 with distill.embedding={self.embedding}, which has the student's own table"
        check(applies, "distill.teacher_table", self.teacher_table, allowed)
        applies = self.init == "scratch" or self.embedding not in _IN_THE_STUDENTS_WIDTH
        allowed = f"scratch with distill.embedding={self.embedding}, which says how the item table starts"
        check(applies, "distill.init", self.init, allowed)
        applies = self.init == "baseline" or self.init_checkpoint is None
        check(applies, "distill.init_checkpoint", self.init_checkpoint, "null with distill.init=scratch")

    @property
    def reads_files(self) -> bool:
        """Whether the teacher is made of exported files."""
        return self.teacher not in _WITHOUT_FILES

    @property
    def ranking_weight(self) -> float:
        return 1.0 if self.candidate_loss == "official" else self.alpha

    @property
    def ranking_weights(self) -> RankingWeights:
        return RankingWeights(
            self.gamma_position, self.gamma_confidence, self.gamma_consistency, self.confidence_temperature
        )

    @property
    def needs_ranking(self) -> bool:
        return self.kd_weight * self.ranking_weight > 0

    @property
    def reads_ranking(self) -> bool:
        """Whether the teacher's own rankings are used."""
        return self.needs_ranking and self.ranking == "exported"

    @property
    def ranks_by_similarity(self) -> bool:
        return self.needs_ranking and (self.ranking == "similarity" or self.teacher == "tfidf")

    @property
    def blends_recommender(self) -> bool:
        return self.needs_ranking and self.ranking == "blend"

    @property
    def reads_embeddings(self) -> bool:
        """Whether the teacher's embeddings are used, in the model or for rankings."""
        return self.needs_embeddings or (self.ranks_by_similarity and self.teacher != "tfidf")

    @property
    def needs_embeddings(self) -> bool:
        """Whether the teacher's embeddings enter the model or its loss."""
        return self.ed_weight > 0 and (self.embedding != "align" or self.kd_weight > 0)

    @property
    def gates_samples(self) -> bool:
        """Whether a loss of its own distils each sample; what enters the model is there for all."""
        return self.needs_ranking or (self.embedding == "align" and self.needs_embeddings)

    def as_student(self, student: StudentConfig) -> StudentConfig:
        """The student's settings as the distillation trains them: its own budget and base loss, the rest the student's.

        Raises:
            UserError: the candidates' loss needs negatives and the base loss draws none; the embeddings are to be the
                item table's and will have another width.
        """
        if self.needs_embeddings and self.embedding in _IN_THE_STUDENTS_WIDTH:
            dims = student.emb_size if self.embedding_dims is None else self.embedding_dims
            allowed = f"null or student.emb_size={student.emb_size} with distill.embedding={self.embedding}"
            check(dims == student.emb_size, "distill.embedding_dims", dims, allowed)
        loss = self.loss or student.loss
        if self.candidate_loss == "official" and loss not in _LOSSES_WITH_NEGATIVES:
            raise UserError(
                "distill.candidate_loss=official: needs a base loss with negatives, distill.loss="
                f"{' or '.join(_LOSSES_WITH_NEGATIVES)}, not {loss}"
            )
        shares_alpha = self.candidate_loss == "official" and loss == "bce_dros"
        return replace(
            student,
            batch_size=self.batch_size,
            lr=self.lr,
            num_epochs=self.num_epochs,
            loss=loss,
            dros_weight=self.alpha if shares_alpha else student.dros_weight,
        )
