"""The pipeline once over with names, titles, ids and folders that would be markup, formulas or control sequences.

Whatever comes out of it is read back by a reader of its language.
"""

import base64
import csv
import html
import io
import re
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from harness import TINY_STUDENT, TINY_TEACHER, run_here
from hostile import HOSTILE, Page, require_harmless, unsafe
from markdown_it import MarkdownIt  # which rich depends on
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.core.foreign.escape import csv_cell, terminal
from src.exp import gather, recommend, run_distill, run_eval_all, run_student_baseline, run_study, run_teacher

FOLDER = 're sult [b]<script>|$HOME`x`"q" $\\frac$ \x1b[31m\u202e{{7*7}}'
SECRET = "what is in no report"
NUM_ITEMS = 24
ITEM_IDS = [f"{HOSTILE[item % len(HOSTILE)]} {item}".replace(" ", "_") for item in range(NUM_ITEMS)]
NAME = " ".join(HOSTILE)


def quoted(key: str, value: object) -> str:
    """An override with a value that Hydra's grammar takes as it is."""
    return f"{key}='" + str(value).replace("'", "\\'") + "'"


def write_raw_files(folder: Path) -> None:
    """30 users who walk round the catalogue by 1 or 5; two items of each title."""
    folder.mkdir(parents=True)
    log = [
        [f"{HOSTILE[user % len(HOSTILE)]} {user}", ITEM_IDS[(user + step * (1 + 4 * (user % 2))) % NUM_ITEMS], step]
        for user in range(30)
        for step in range(6)
    ]
    titles = [[item_id, HOSTILE[item % len(HOSTILE)]] for item, item_id in enumerate(ITEM_IDS)]
    for name, header, lines in (
        ("interactions.csv", ["user", "item", "timestamp"], log),
        ("items.csv", ["item", "title"], titles),
    ):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *lines])


@dataclass(frozen=True)
class Run:
    """A finished pipeline: its folder, settings without it, and what each stage printed to either stream."""

    folder: Path
    settings: list[str]
    printed: dict[str, str]

    def call(self, run, *overrides: str, code: int = 0) -> str:
        """Run an entry point; returns all that it printed."""
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(out):
            assert run_here(run, *self.settings, quoted("hydra.run.dir", self.folder), *overrides) == code
        return out.getvalue()

    def files(self, ending: str) -> dict[str, str]:
        found = {str(path.name): path.read_text(encoding="utf-8") for path in self.folder.rglob(f"*{ending}")}
        return {name: text for name, text in found.items() if text}


STAGES = (run_teacher.run, run_student_baseline.run, run_distill.run, run_eval_all.run)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    root = tmp_path_factory.mktemp("hostile")
    write_raw_files(root / "raw")
    folder = root / FOLDER / "run <b>"
    settings = [
        *(word for word in TINY_STUDENT if not word.startswith("dataset")),
        *TINY_TEACHER,
        "teacher.max_train_rows=8",
        "teacher.max_valid_rows=2",
        "teacher.max_eval_rows=8",
        "teacher.max_history=1",
        "teacher.num_candidates=5",
        "teacher.recommender.batch_size=8",
        "teacher.tiny.vocab_size=600",
        "student.batch_size=8",
        "dataset=csv",
        quoted("dataset.raw_dir", root / "raw"),
        quoted("paths.data_dir", root / "data"),
        quoted("paths.result_root", root / FOLDER),
        quoted("general.experiment_name", NAME),
    ]
    made = Run(folder, settings, {})
    for stage in STAGES:
        made.printed[stage.__module__] = made.call(stage)
    for place in (folder / "secret.txt", folder.parent / "secret.txt"):
        place.write_text(SECRET)
    with (root / "histories.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("user", "history"), *((user, ITEM_IDS[0]) for user in HOSTILE)])
    files = [quoted("recommend.input", root / "histories.csv"), quoted("recommend.output", folder / "answers.csv")]
    asked = ["recommend.top_k=23", quoted("recommend.checkpoint", folder / "models/distill")]
    made.printed["a file"] = made.call(recommend.run, *asked, *files)
    made.printed["a history"] = made.call(recommend.run, *asked, f"recommend.history=['{HOSTILE[0]}']")
    return made


# --- the pipeline ---------------------------------------------------------------------------------------------


def test_nothing_that_is_printed_or_logged_moves_the_cursor(run) -> None:
    assert len(run.printed) == len(STAGES) + 2
    for name, text in [*run.printed.items(), *run.files(".log").items()]:
        assert not unsafe(text), name
    assert terminal(str(run.folder)) in run.printed["src.exp.run_eval_all"]


def test_a_table_on_the_terminal_shows_every_title(run) -> None:
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in run.printed["a history"].splitlines()]
    shown = "".join(line[2] for line in lines if len(line) == 4)  # a long title takes several lines
    for text in HOSTILE[1:]:
        assert terminal(text).replace(" ", "") in shown.replace(" ", ""), text


def test_the_report_is_text_and_its_own_plots(run) -> None:
    text = run.files("report.html")["report.html"]
    page = Page(text)
    require_harmless(page)
    assert "img" not in page.names and not page.addresses("src", "data", "xlink:href") - {None}
    assert all(address.startswith("#") for address in page.addresses("href"))
    assert not unsafe(text)
    assert page.words.count(terminal(NAME)) >= 2  # title and heading
    assert SECRET not in text and base64.b64encode(SECRET.encode()).decode()[:12] not in text


@pytest.mark.parametrize("name", ["report.md", "summary.md", "teacher_examples.md"])
def test_a_page_of_markdown_holds_text_and_its_own_plots(run, name) -> None:
    text = run.files(".md")[name]
    assert not unsafe(text)
    page = Page(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))
    require_harmless(page)
    plots = {f"plots/{plot}.png" for plot in ("intervals", "comparison", "breakdown", "learning_curves")}
    assert page.addresses("src") == (plots if name == "report.md" else set()) and not page.addresses("href")
    tables = [line for line in text.splitlines() if line.startswith("|")]
    widths = [len(re.split(r"(?<!\\)(?:\\\\)*\|", line)) for line in tables]
    ends = [i for i, line in enumerate(tables) if re.fullmatch(r"[|:-]+", line)]  # below a header
    assert all(width == widths[max(end for end in ends if end - 1 <= i)] for i, width in enumerate(widths))


def test_the_teachers_examples_show_the_titles(run) -> None:
    page = Page(MarkdownIt("commonmark", {"html": True}).render(run.files(".md")["teacher_examples.md"]))
    shown = html.unescape(page.words)
    assert all(" ".join(terminal(text).split()) in shown for text in HOSTILE)


def test_every_table_is_read_back_and_holds_no_formula(run) -> None:
    tables = run.files(".csv")
    assert {"summary.csv", "history_distill.csv", "answers.csv"} <= set(tables)
    for name, text in tables.items():
        header, *lines = csv.reader(io.StringIO(text, newline=""))
        assert lines and all(len(line) == len(header) for line in lines), name
        free = [i for i, column in enumerate(header) if column not in ("user", "item")]
        assert all(line[i] == csv_cell(line[i]) for line in [header, *lines] for i in free), name


def test_answers_keep_ids_and_show_titles(run) -> None:
    found = pd.read_csv(run.folder / "answers.csv", dtype=str)
    assert list(dict.fromkeys(found["user"])) == HOSTILE  # so that they can be joined
    first = found[found["user"] == HOSTILE[0]]
    titles = dict(zip(first["item"], first["title"], strict=True))
    assert set(titles) == set(ITEM_IDS[1:])
    for item, text in enumerate(HOSTILE[1:], start=1):
        assert titles[ITEM_IDS[item]].removesuffix(" (2)") == csv_cell(text)
    assert "ids that are formulas for a spreadsheet or hold control characters" in run.printed["a file"]


def test_tensorboard_has_no_tags_but_ours(run) -> None:
    tags: set[str] = set()
    for folder in (run.folder / "tb").iterdir():
        events = EventAccumulator(str(folder))
        events.Reload()
        tags |= set(events.Tags()["scalars"])
    assert tags and all(re.fullmatch(r"[\w@/.-]+", tag) for tag in tags)


# --- what is refused --------------------------------------------------------------------------------------------

KEYS = {
    "recommend.checkpoint": recommend.run,
    "eval.run_dir": run_eval_all.run,
    "gather.sweep_dir": gather.run,
    "study.run_dir": run_study.run,
    "dataset.raw_dir": run_student_baseline.run,
    "distill.embeddings_file": run_distill.run,
    "student.name": run_student_baseline.run,
    "general.device": run_student_baseline.run,
}


@pytest.mark.parametrize("key", KEYS)
def test_an_error_is_one_line_that_names_the_key_and_changes_no_terminal(run, tmp_path, key) -> None:
    words = ["student.batch_size=4"] if key != "general.device" else []
    out = run.call(KEYS[key], *words, quoted("hydra.run.dir", tmp_path / "run"), quoted(key, NAME), code=1)
    (error,) = (line for line in out.splitlines() if line.startswith("error: "))
    assert terminal(HOSTILE[0]) in error and not unsafe(out)
