"""Answers of a trained student: after one history, printed, or after each history of a file."""

import csv
import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from src.core.errors import UserError
from src.core.files import write_atomic
from src.core.foreign.escape import csv_cell, rich_text
from src.core.logging import row_progress
from src.core.paths import project_path
from src.serving.config import RecommendConfig
from src.serving.recommender import Recommender

_COLUMNS = ("user", "history")
_CHUNK = 4096  # histories that are read and answered at a time


def answer(student: Recommender, name: str, asked: RecommendConfig, logger: logging.Logger) -> None:
    """Answer what is asked; `name` is what the student is called."""
    if asked.input is None:
        _print(student, name, asked)
    else:
        _answer_file(student, asked, logger)
    if student.unknown:
        examples = ", ".join(repr(name) for name, _ in student.unknown.most_common(3))
        logger.warning(
            "recommend.unknown=skip: left out %d times %d names that are no item's, such as %s",
            student.unknown.total(),
            len(student.unknown),
            examples,
        )


def _question(asked: RecommendConfig) -> dict[str, Any]:
    return {
        "top_k": asked.top_k,
        "show_history": asked.show_history,
        "skip_unknown": asked.unknown == "skip",
        "allowed": asked.allowed,
    }


# --- one history --------------------------------------------------------------------------------------------


def _print(student: Recommender, name: str, asked: RecommendConfig) -> None:
    (best,) = student.recommend([asked.history], **_question(asked))
    table = Table(title=rich_text(name))
    for column in ("rank", "item", "title", "score"):
        justify: Literal["left", "right"] = "right" if column in ("rank", "score") else "left"
        table.add_column(column, justify=justify, overflow="fold")  # by default an id that is cut is lost
    for rank, item in enumerate(best, start=1):
        table.add_row(str(rank), rich_text(item.item_id), rich_text(item.title), f"{item.score:.4f}")
    Console().print(table)


# --- a file of histories ------------------------------------------------------------------------------------


def _answer_file(student: Recommender, asked: RecommendConfig, logger: logging.Logger) -> None:
    """Write a line per recommendation: user, rank, item, title, score. Neither file is ever held whole."""
    assert asked.input is not None and asked.output is not None  # the settings have both or none
    source, target = project_path(asked.input), project_path(asked.output)
    student.recommend([], **_question(asked))  # what is wrong with the question is no line's fault
    read = {".csv": _read_csv, ".parquet": _read_parquet}[source.suffix]
    users = lines = short = odd = 0

    def write(path: Path) -> None:
        nonlocal users, lines, short, odd
        with open(path, "w", encoding="utf-8", newline="") as file, row_progress("recommend", total=None) as advance:
            writer = csv.writer(file)
            writer.writerow(["user", "rank", "item", "title", "score"])
            questions = read(source)
            while part := list(islice(questions, _CHUNK)):
                answers = _answer(student, part, asked, source)
                for (_, user, _), best in zip(part, answers, strict=True):
                    ranked = enumerate(best, start=1)
                    writer.writerows([user, rank, i.item_id, csv_cell(i.title), f"{i.score:.6g}"] for rank, i in ranked)
                    lines += len(best)
                    odd += any(csv_cell(name) != name for name in (user, *(i.item_id for i in best)))
                    short += len(best) < asked.top_k
                users += len(part)
                advance(len(part))

    write_atomic(target, write)
    logger.info("wrote %s: %d recommendations to %d users", target, lines, users)
    if odd:
        logger.warning(
            "%d of them have ids that are formulas for a spreadsheet or hold control characters: written as they are, "
            "so that they can be joined; import them as text",
            odd,
        )
    if short:
        logger.warning(
            "%d of them have fewer than recommend.top_k=%d: nothing more may be recommended", short, asked.top_k
        )


def _answer(student: Recommender, part: list["_Line"], asked: RecommendConfig, source: Path) -> list[list[Any]]:
    try:
        return student.recommend([history for _, _, history in part], **_question(asked))
    except UserError as error:  # of one history, which it does not know the line of
        for number, _, history in part:
            try:
                student.recommend([history], **_question(asked))
            except UserError as cause:
                raise UserError(f"{source}: line {number}: {cause}") from error
        raise


_Line = tuple[int, str, list[str]]  # its number in the file, the user, the history


def _read_csv(path: Path) -> Iterator[_Line]:
    line = 0
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            user, history = _places(path, header)
            line = reader.line_num
            for fields in reader:
                if reader.line_num > line + 1:  # it would swallow the users in the lines between
                    raise UserError(f"{path}: line {line + 1}: the quote that opens here is not closed in its line")
                line = reader.line_num
                if len(fields) != len(header):
                    raise UserError(
                        f"{path}: line {reader.line_num}: {len(fields)} fields where the header has {len(header)}; put "
                        "quotes around a field with a comma"
                    )
                yield reader.line_num, fields[user], fields[history].split()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        at = f" line {line + 1}:" if line else ""
        raise UserError(f"recommend.input={path}:{at} cannot be read as CSV in UTF-8 ({error})") from error


def _read_parquet(path: Path) -> Iterator[_Line]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            _places(path, file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches(_CHUNK, columns=list(_COLUMNS)):
                users, histories = (batch.column(name).cast(pyarrow.string()).to_pylist() for name in _COLUMNS)
                for user, history in zip(users, histories, strict=True):
                    number += 1
                    yield number, user or "", (history or "").split()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:  # the last of texts
        raise UserError(f"recommend.input={path}: cannot be read as Parquet ({error})") from error


def _places(path: Path, header: list[str]) -> tuple[int, int]:
    missing = [name for name in _COLUMNS if name not in header]
    if missing:
        raise UserError(
            f"recommend.input={path}: no column {' and '.join(missing)} among {', '.join(header) or 'none'}; a line is "
            "a user and the raw ids of the history, blanks between them, oldest first"
        )
    return header.index(_COLUMNS[0]), header.index(_COLUMNS[1])
