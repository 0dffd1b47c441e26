"""`recommend` and `export`: what is asked of a trained student."""

from dataclasses import dataclass, field

from src.core.errors import check


@dataclass(frozen=True, kw_only=True)
class RecommendConfig:
    """`recommend`: a question to a trained student, or a file of them.

    Attributes:
        input: histories, CSV or Parquet with the columns `user` and `history`; output: where the answers go, CSV.
        unknown: what becomes of a name that is no item's.
    """

    checkpoint: str | None = None
    history: list[str] = field(default_factory=list)
    input: str | None = None
    output: str | None = None
    top_k: int = 10
    show_history: bool = False
    allowed: list[str] = field(default_factory=list)
    unknown: str = "refuse"

    def __post_init__(self) -> None:
        check(self.top_k >= 1, "recommend.top_k", self.top_k, "an integer >= 1")
        check(self.unknown in ("refuse", "skip"), "recommend.unknown", self.unknown, "refuse or skip")
        for key, endings in (("input", (".csv", ".parquet")), ("output", (".csv",))):
            file = getattr(self, key)
            check(
                file is None or file.endswith(endings),
                f"recommend.{key}",
                file,
                f"null or a file {' or '.join(endings)}",
            )
        allowed = "a file .csv with recommend.input, and null without"
        check((self.input is None) == (self.output is None), "recommend.output", self.output, allowed)
        allowed = "[] with recommend.input, whose histories are asked for"
        check(self.input is None or not self.history, "recommend.history", self.history, allowed)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """`export`: a student as ONNX.

    Attributes:
        checkpoint: folder of a student, or its id on the hub; None: that of the newest run of the data set.
        output: the file; None: `model.onnx` in the checkpoint's folder.
    """

    checkpoint: str | None = None
    output: str | None = None

    def __post_init__(self) -> None:
        allowed = "null or a file .onnx"
        check(self.output is None or self.output.endswith(".onnx"), "export.output", self.output, allowed)
