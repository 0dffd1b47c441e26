"""Pages: data of any kind is shown as it is and never becomes markup, a link or an embedded file."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from harness import leave_plots_empty
from invented import comparison, evaluation, ranks, settings

from src.core.files import write_text
from src.core.paths import RunFolder
from src.exp.compare.significance import half_width
from src.exp.compare.studies import StudyResult
from src.exp.report.pages import Table, markdown_table
from src.exp.report.run_report import write_report
from src.exp.report.tables import valid_sample
from src.student.config import GRU4RecConfig

NASTY = '<script>alert(1)</script> | [/b] \x1b[31m\n# ![x](/etc/passwd) src="../secret.txt" `$(rm)`'
FIRST, LATE = ranks([0] * 8), ranks([5] * 8)
ANSWERS = ("hr@1_all", "hr@1", "valid_ratio", "hr@1_likelihood")
MODELS = {"popular": LATE, "markov": LATE, "baseline": LATE, "distill": FIRST}


class Tags(HTMLParser):
    """The elements of a page, their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs) -> None:
        self.names.append(tag)
        self.attributes += attrs

    def handle_data(self, data) -> None:
        self.words += data


@pytest.fixture
def pages(tiny_dataset, tmp_path):
    """Writes the report of an invented run, its plots empty unless `drawn`; gives its Markdown and its HTML."""

    def write(*, drawn: bool = False, **changes) -> tuple[str, str]:
        dataset = changes.pop("dataset", tiny_dataset)
        with pytest.MonkeyPatch.context() as patch:
            if not drawn:
                leave_plots_empty(patch)
            write_report(comparison(tmp_path / "run", dataset, MODELS, **changes))
        return tuple((tmp_path / "run" / f"report.{kind}").read_text(encoding="utf-8") for kind in ("md", "html"))

    (tmp_path / "secret.txt").write_text("secret")
    return write


@pytest.fixture
def nasty(pages, tiny_dataset, tmp_path) -> tuple[str, str]:
    """Everything that is named by others has a nasty name."""
    write_text(RunFolder(tmp_path / "run").snapshot_dir("distill") / "overrides.yaml", json.dumps([f"a='{NASTY}'"]))
    return pages(
        drawn=True,
        settings=settings(experiment_name=NASTY),
        dataset=replace(tiny_dataset, name=NASTY),
        commit=NASTY,
        unlike=NASTY,
        notes=[NASTY],
    )


def test_nothing_in_the_html_comes_from_data_but_text(nasty, pages) -> None:
    plain, found = Tags(pages(drawn=True, unlike="x", notes=["x"])[1]), Tags(nasty[1])
    assert set(found.names) == set(plain.names) and found.names.count("script") == 1 and "img" not in found.names
    scripts = [re.findall(r"<script>(.*?)</script>", page, re.S) for page in (nasty[1], pages(unlike="x")[1])]
    assert scripts[0] == scripts[1]  # ours, with nothing of the data in it
    assert not [name for name, _ in found.attributes if name in ("src", "onerror", "srcdoc")]
    assert not [value for name, value in found.attributes if name.endswith("href") and not value.startswith("#")]
    shown = r'<script>alert(1)</script> | [/b] \x1b[31m\n# ![x](/etc/passwd) src="../secret.txt" `$(rm)`'
    assert found.words.count(shown) >= 2 + 1 + 1 + 1  # title and heading, commit, unlike, note
    assert "\x1b" not in nasty[1] and "c2VjcmV0" not in nasty[1]  # base64 of "secret"


def test_nothing_in_the_markdown_comes_from_data_but_text(nasty, pages) -> None:
    text, plain = (
        re.sub(r"```bash.*?```", "", page, flags=re.S) for page in (nasty[0], pages(unlike="x", notes=["x"])[0])
    )
    assert "\x1b" not in nasty[0] and "<script" not in text
    images = re.findall(r"(?<!\\)!\[[^\]]*\]\(([^)]*)\)", text)
    assert [Path(image).name for image in images] == [
        "intervals.png",
        "comparison.png",
        "breakdown.png",
        "learning_curves.png",
    ]
    assert re.findall(r"^#+ ", text, re.M) == re.findall(r"^#+ ", plain, re.M)
    assert text.count("\n") == plain.count("\n")


def test_a_table_of_markdown_keeps_its_columns() -> None:
    rows = [[NASTY, "+0.5", NASTY], ["plain", "1e-05", "a.b=1"]]
    text = markdown_table(Table(columns=["a|b", "n", "code"], rows=rows, numbers=["n"], code=["code"]))
    lines = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines()]
    assert [len(line) for line in lines] == [3] * (2 + 2)
    assert [line[1] for line in lines] == ["n", lines[1][1], "+0.5", "1e-05"] and lines[1][1].endswith("-:")
    assert lines[3] == ["plain", "1e-05", "`a.b=1`"]
    assert "<script" not in text and "\x1b" not in text


def test_only_plots_of_this_report_are_shown(pages, tmp_path) -> None:
    (tmp_path / "run" / "plots").mkdir(parents=True)
    (tmp_path / "run" / "plots" / "leftover.png").write_bytes(b"image")
    assert not [text for text in pages() if "leftover" in text]


def test_a_study_of_the_data_has_its_table_and_its_plot(pages) -> None:
    table = pd.DataFrame(
        {
            "seeds": [3, 3],
            "users": [9, 9],
            "validation": [0.2, 0.3],
            "mean": [0.1, 0.25],
            "std": [0.01, 0.02],
            "difference": [np.nan, 0.15],
            "low": [np.nan, 0.1],
            "high": [np.nan, 0.2],
            "p_value": [np.nan, 0.01],
            "verdict": [None, "better"],
            "not comparable": ["", ""],
        },
        index=["baseline", "random teaches"],
    )
    markdown, html = pages(drawn=True, studies=[StudyResult(name="controls", folder="result_1", table=table)])
    assert "| random teaches |" in markdown and "](plots/study_controls.png)" in markdown
    section = html.split('id="studies"')[1].split("<h2")[0]
    assert "+0.1500" in section and "+0.1000 to +0.2000" in section and "<svg" in section
    assert "baseline 0.1000 ± 0.0100; random teaches 0.2500 ± 0.0200" in section  # for those who do not see the plot


def test_without_studies_there_is_no_section_of_them(pages) -> None:
    assert not [text for text in pages() if "Studies" in text]


def test_unlike_students_get_no_difference_on_the_page(pages) -> None:
    for text in pages(unlike="general.seed 5 / 42"):
        assert "not comparable: general.seed 5 / 42" in text
        assert "distilled - baseline" not in text and "+1.0000" in text  # the differences to the references
    for text in pages():
        assert "distilled - baseline" in text


def test_the_page_begins_with_the_verdict_and_the_main_difference(pages) -> None:
    _, html = pages()
    top = html.split("<nav")[0]
    assert "The distilled student is better than the baseline" in top
    assert "Difference +1.0000 test Recall@1, history shown, 95\u00a0% interval +1.0000 to +1.0000." in top
    assert (
        'aria-label="Differences of Recall@1, history shown, with 95 % intervals: distilled - baseline +1.0000' in top
    )


def test_tables_are_sorted_by_a_script_of_the_page_which_tells_numbers_from_text(pages) -> None:
    """What it does was looked at in a browser; here, that it is given what it goes by and is not needed to read."""
    html = pages()[1]
    script = html[html.index("<script>") : html.index("</script>")]
    assert 'head.classList.contains("number")' in script and "ariaSort" in script and "://" not in script
    heads = re.findall(r'<th scope="col"( class="number")?>(.*?)</th>', html)
    assert {name: bool(number) for number, name in heads if name in ("difference", "verdict", "NDCG@10")} == {
        "difference": True,
        "verdict": False,
        "NDCG@10": True,
    }
    assert "<button" not in html  # the script makes them, so that a page without scripts shows none


def test_bars_have_intervals_that_the_words_tell(pages) -> None:
    """Eight users, half of them hit: 1.96 * sqrt(0.25 * 8 / 7 / 8) to either side; without a spread, no sentence."""
    assert half_width([ranks([0, 9] * 4)], "recall@1") == pytest.approx(1.96 * (0.25 / 7) ** 0.5)
    assert half_width([ranks([0] * 8)], "recall@1") == 0
    assert pages(drawn=True)[1].count("95 % intervals reach up to") >= 4 + 2


def test_the_page_follows_the_readers_light_and_width(pages) -> None:
    _, html = pages()
    assert "@media (prefers-color-scheme: dark)" in html and 'content="width=device-width' in html
    used, defined = set(re.findall(r"var\(--([\w-]+)\)", html)), set(re.findall(r"^--([\w-]+):", html, re.M))
    assert used and used <= defined


def test_times_and_metrics_are_named_for_people(pages, tmp_path) -> None:
    (tmp_path / "run" / "metrics").mkdir(parents=True)
    (tmp_path / "run" / "metrics" / "time.json").write_text('{"distill_student_train_time": 7.854, "my_step": 1}')
    markdown, _ = pages()
    assert "training the distilled student |       7.9 |" in markdown and "my step" in markdown
    assert "HitRatio" not in markdown and "| NDCG@10" in markdown.replace("   ", " ").replace("  ", " ")


def test_a_teacher_that_answers_no_prompts_has_metrics_but_no_section(pages) -> None:
    ranked = {name: evaluation(found) for name, found in {"teacher": LATE, **MODELS}.items()}
    markdown, _ = pages(evaluations=ranked)
    assert "\n| teacher " in markdown and "\n## Teacher" not in markdown
    answered = {"num_rows": 8, **{f"{key}{end}": 0.5 for key in ANSWERS for end in ("", "_low", "_high")}}
    markdown, _ = pages(evaluations={**ranked, "teacher": {**ranked["teacher"], "answers": answered}})
    assert "\n## Teacher" in markdown


def test_a_report_of_the_history_removed_says_so_and_that_the_original_program_has_no_such_number(pages) -> None:
    program = {"metrics": {"recall@1": 0.5}, "metrics_masked": {}, "protocol": "history shown"}
    ranked = {name: evaluation(found) for name, found in MODELS.items()}
    for text in pages(settings=settings(history="removed"), evaluations={**ranked, "dllm2rec_upstream": program}):
        text = text.replace("\\", "")
        assert "Items of the history removed (this decides):" in text and "History shown:" in text
        assert "Differences of Recall@1, history removed, user by user" in text
        assert "Test Recall@1, history removed, by target's training rows: " in text.replace("&#39;", "'")
        assert "do not compare. It has no number with the history removed, which decides here." in text
        assert "Recall@1, history shown" not in text.replace("Recall, history shown", "")
    for text in pages(evaluations={**ranked, "dllm2rec_upstream": program}):
        assert "History shown (this decides):" in text and "It has no number" not in text


def test_reports_say_what_validation_numbers_are_of():
    dataset = SimpleNamespace(valid=range(8))
    assert valid_sample(GRU4RecConfig(name="gru4rec", max_valid_rows=3), dataset) == {
        "validation on": "a fixed sample of 3 of 8 rows"
    }
    assert valid_sample(GRU4RecConfig(name="gru4rec"), dataset) == {}
