"""The table, the plots and the page of a study, on invented ranks."""

import csv

import numpy as np
import pandas as pd
import pytest
from harness import refusal
from hostile import HOSTILE, Page, require_harmless, unsafe
from invented import ranks
from markdown_it import MarkdownIt
from matplotlib import image

from src.core.foreign.escape import csv_cell, terminal
from src.exp.report.studies import curve_plot, plot_curve, plot_study, variants_plot
from src.exp.study.config import StudyConfig
from src.exp.study.pages import Study, study_page
from src.exp.study.plan import variants
from src.exp.study.table import study_table

EIGHT_FIRST, NONE_FIRST = ranks([0] * 8), ranks([5] * 8)


def test_a_tables_numbers_by_hand() -> None:
    given = {"baseline": [ranks([0, 3]), ranks([3, 3])], "variant": [ranks([0, 0]), ranks([0, 3])]}
    found = study_table(given, metric="recall@1", reference="baseline")
    assert found.loc["baseline", "mean"] == (0.5 + 0.0) / 2
    assert found.loc["baseline", "std"] == pytest.approx(0.5 / 2**0.5)  # sqrt(2 * 0.25^2 / (2 - 1))
    assert found.loc["variant", "mean"] == (1.0 + 0.5) / 2
    assert found.loc["variant", "difference"] == 0.5  # users (1 + 1) / 2 - (1 + 0) / 2 and (1 + 0) / 2 - 0, averaged
    assert (found["masked"] == 1).all()
    assert list(found["users"]) == [2, 2] and list(found["seeds"]) == [2, 2]
    assert pd.isna(found.loc["baseline", ["difference", "low", "high", "p_value", "verdict"]]).all()


def test_a_leader_is_tested_against_each_other_that_is_tested(tmp_path) -> None:
    """Eight differences of one sign, p 2 / 2**8, times the three tests; the leader has no lead over itself."""
    given = {"baseline": [NONE_FIRST], "mine": [EIGHT_FIRST], "as_good": [EIGHT_FIRST], "far": [NONE_FIRST]}
    given["longer"] = [NONE_FIRST]
    unlike = {"longer": "epochs 10 / 200"}
    table = study_table(given, metric="recall@1", reference="baseline", unlike=unlike, leader="mine")
    assert table["lead"].dropna().to_dict() == {"baseline": 1.0, "as_good": 0.0, "far": 1.0}
    assert table["lead_verdict"].dropna().to_dict() == {
        "baseline": "better",
        "as_good": "cannot tell",
        "far": "better",
    }
    assert table.loc["far", ["lead_low", "lead_high"]].tolist() == [1.0, 1.0]
    assert "lead" not in study_table(given, metric="recall@1", reference="baseline")

    study = Study(name="s", title="S", metric="recall@1", table=table, reference="baseline", leader="mine")
    files = study_page(study, tmp_path)
    for text in (file.read_text(encoding="utf-8") for file in files if file.suffix in (".md", ".html")):
        for words in ("mine is ahead of: baseline (+1.0000); far (+1.0000)", "mine cannot be told from: as good"):
            assert words in text
        assert "Lead: mine less the variant of the line" in text and "lead over it" in text

    nobody = study_table(given, metric="recall@1", reference="baseline", unlike={"mine": "x"}, leader="mine")
    assert nobody["lead"].isna().all()  # it cannot be compared


def test_validation_is_averaged_where_it_is_given() -> None:
    given = {"a": [ranks([0]), ranks([0])], "b": [ranks([0])], "c": [ranks([0])]}
    found = study_table(given, metric="mrr", reference="a", validation={"a": [0.2, 0.4], "b": [0.5]})
    assert found.columns.get_loc("validation") < found.columns.get_loc("mean")
    assert found["validation"].tolist() == [pytest.approx(0.3), 0.5, pytest.approx(np.nan, nan_ok=True)]
    assert "validation" not in study_table(given, metric="mrr", reference="a")


def test_a_page_names_variants_in_words_and_the_table_for_programs_by_their_keys(tmp_path) -> None:
    table = study_table(
        {"baseline": [NONE_FIRST], "ranking_only": [EIGHT_FIRST]}, metric="recall@1", reference="baseline"
    )
    files = study_page(Study(name="s", title="S", metric="recall@1", table=table, reference="baseline"), tmp_path)
    texts = {file.suffix: file.read_text(encoding="utf-8") for file in files if file.suffix != ".png"}
    assert "ranking_only" in texts[".csv"]
    for page in (texts[".md"], texts[".html"]):
        assert "ranking only" in page and "ranking_only" not in page


def test_p_values_are_corrected_over_the_variants_that_are_tested() -> None:
    """Eight differences of one sign: 2 / 2**8, twice that where two variants are tested."""
    given = {"baseline": [NONE_FIRST], "a": [EIGHT_FIRST], "b": [EIGHT_FIRST]}
    both = study_table(given, metric="recall@1", reference="baseline")
    one = study_table(given, metric="recall@1", reference="baseline", unlike={"b": "student.num_epochs 10 / 200"})
    assert both.loc["a", "p_value"] == pytest.approx(2 * 2 / 2**8)
    assert one.loc["a", "p_value"] == pytest.approx(2 / 2**8)


def test_variants_that_are_unlike_the_reference_are_not_tested() -> None:
    given = {
        "baseline": [NONE_FIRST],
        "like": [EIGHT_FIRST],
        "budget": [EIGHT_FIRST],
        "other users": [ranks([0] * 8, users=list(range(20, 28)))],
        "other targets": [{**EIGHT_FIRST, "target": np.ones(8, int)}],
        "some users": [ranks([0] * 4, users=[2, 3, 4, 5])],  # a teacher answers a sample
    }
    found = study_table(given, metric="recall@1", reference="baseline", unlike={"budget": "rows 100 / 32"})
    assert found["not comparable"].to_dict() == {
        "baseline": "",
        "like": "",
        "budget": "rows 100 / 32",
        "other users": "no test user in common",
        "other targets": "other test rows",
        "some users": "",
    }
    tested = found["verdict"].notna()
    assert list(found.index[tested]) == ["like", "some users"] == list(found.index[found["p_value"].notna()])
    assert found.loc["some users", "users"] == 4


def test_the_history_may_be_removed_from_the_ranking_that_decides() -> None:
    given = {"a": [ranks([5] * 8, masked=[0] * 8)], "b": [ranks([0] * 8, masked=[5] * 8)]}
    shown, removed = (study_table(given, metric="recall@1", masked=m, reference="a") for m in (False, True))
    assert (shown.loc["b", "difference"], removed.loc["b", "difference"]) == (1, -1)
    assert shown["masked"].tolist() == removed["mean"].tolist() == [1, 0]
    assert removed["shown"].tolist() == shown["mean"].tolist() == [0, 1] and "masked" not in removed


def test_the_reference_has_to_be_a_variant() -> None:
    message = refusal(lambda: study_table({"a": [EIGHT_FIRST]}, metric="mrr", reference="b"))
    assert message == "reference 'b': is none of the variants; give one of a"


@pytest.fixture
def table() -> pd.DataFrame:
    """Two variants that win, one that cannot be told, one that is unlike."""
    given = {
        "baseline": [NONE_FIRST, NONE_FIRST],
        "good": [EIGHT_FIRST, NONE_FIRST],
        "best": [EIGHT_FIRST, EIGHT_FIRST],
        "same": [NONE_FIRST],
        "longer": [EIGHT_FIRST],
    }
    return study_table(given, metric="recall@1", reference="baseline", unlike={"longer": "epochs 10 / 200"})


def test_variants_are_drawn_in_order_or_sorted(table, tmp_path) -> None:
    means, differences = variants_plot(table, metric="recall@1", name="x").panels
    assert means.alt.index("good 0.5000 ± 0.7071") < means.alt.index("best 1.0000")  # sqrt(2 * 0.5^2 / (2 - 1))
    assert "best +1.0000 (+1.0000 to +1.0000), better" in differences.alt
    assert "longer" in means.alt and "longer" not in differences.alt
    in_order = variants_plot(table, metric="recall@1", name="x", sort=True).panels[0].alt
    assert in_order.index("best") < in_order.index("good") < in_order.index("same")
    plot_study(table, metric="recall@1", path=tmp_path / "study.png")
    assert image.imread(tmp_path / "study.png")[..., :3].std() > 0.01


def test_what_needs_no_student_does_not_share_the_students_axis() -> None:
    given = {"baseline": [NONE_FIRST], "good": [EIGHT_FIRST], "most popular": [NONE_FIRST]}
    values = {"baseline": [0.1], "good": [0.2]}
    table = study_table(given, metric="recall@1", reference="baseline", validation=values)
    means, students, others = variants_plot(table, metric="recall@1", name="x").panels
    assert "good" in students.alt and "popular" not in means.alt + students.alt
    title = "Without a student: difference in recall@1, 95 % interval"
    assert others.alt == f"{title}: most popular +0.0000 (+0.0000 to +0.0000), cannot tell."


def test_a_curve_has_the_common_points_in_each_series(tmp_path) -> None:
    given = {name: [EIGHT_FIRST] for name in ("none", "all", "random", "policy")} | {"baseline": [NONE_FIRST]}
    table = study_table(given, metric="recall@1", reference="baseline")
    table = table.assign(share=[0, 1, 0.5, 0.25, 0], policy=[None, None, "random", "loss", None])
    (panel,) = curve_plot(table, x="share", series="policy", metric="recall@1", name="x", level="baseline").panels
    assert "random 0: 1.0000, 0.5: 1.0000, 1: 1.0000; loss 0: 1.0000, 0.25: 1.0000, 1: 1.0000" in panel.alt
    assert panel.alt.endswith("baseline 0.0000 (dashed).")
    path = tmp_path / "curve.png"
    plot_curve(table, x="share", series="policy", metric="recall@1", path=path, level="baseline")
    assert image.imread(path)[..., :3].std() > 0.01


def test_the_page_of_a_study(table, tmp_path) -> None:
    study = Study(
        name="ablations",
        title="Ablations",
        metric="recall@1",
        table=table.assign(share=0.5),
        reference="baseline",
        about=["Seeds 1 and 2."],
        unfinished=["job 3: out of memory"],
        facts={"commit": "abc"},
        command="bash cmd/x.sh",
    )
    files = study_page(study, tmp_path)
    assert [file.name for file in files] == [f"ablations.{kind}" for kind in ("csv", "md", "html", "png")]
    assert all(file.is_file() for file in files)
    back = pd.read_csv(files[0], index_col="variant", keep_default_na=False)
    assert back.loc["longer", "not comparable"] == "epochs 10 / 200" and back.loc["best", "verdict"] == "better"
    for text in (files[1].read_text(encoding="utf-8"), files[2].read_text(encoding="utf-8")):
        assert "Of 3 variants compared with baseline: 2 better, 1 that cannot be told from it." in text
        assert "better: good (+0.5000); best (+1.0000)" in text and "not comparable: longer: epochs 10 / 200" in text
        assert all(word in text for word in ("Seeds 1 and 2.", "job 3: out of memory", "abc", "bash cmd/x.sh"))
        assert "0.5000 ± 0.7071" in text and "Holm-corrected for 3 comparisons" in text


@pytest.mark.parametrize("name", [*HOSTILE, "../up", "", "-v"])
def test_names_of_studies_and_variants_are_names_of_folders(name) -> None:
    given = {"question": "?", "seeds": [1]}
    refusals = [
        refusal(lambda: StudyConfig(name=name, **given)),
        refusal(lambda: StudyConfig(name="s", variants={name: []}, **given)),
        refusal(lambda: variants(StudyConfig(name="s", grid={"axis": {name: []}}, **given))),
    ]
    for key, message in zip(("name", "variants", "grid"), refusals, strict=True):
        assert message.startswith(f"study.{key}=") and "must be a name of letters, digits" in message


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize(("kind", "names"), [("points", HOSTILE[::2]), ("curve", HOSTILE[1::2])])
def test_a_page_of_names_from_elsewhere(kind, names, tmp_path) -> None:
    """A sweep's variants are named by whatever overrides its folders hold."""
    given = {"a": [NONE_FIRST], **{name: [EIGHT_FIRST] for name in names}}
    table = study_table(given, metric="mrr", reference="a")
    points = table.assign(x=range(len(table)), series=[None, *names])
    curve = curve_plot(points, x="x", series="series", metric="mrr", name="s", level="a", x_label=HOSTILE[9])
    plot = curve if kind == "curve" else None
    study = Study(
        name="s", title=" ".join(names), metric="mrr", table=table, reference="a", plot=plot, unfinished=names
    )
    cells, markdown, page, picture = study_page(study, tmp_path)
    assert [line[0] for line in csv.reader(cells.open(encoding="utf-8"))][2:] == [csv_cell(name) for name in names]
    assert image.imread(picture)[..., :3].std() > 0.01
    for file in (markdown, page):
        text = file.read_text(encoding="utf-8")
        if file == markdown:
            text = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
        found = Page(text)
        require_harmless(found)
        assert not unsafe(file.read_text(encoding="utf-8"))
        assert found.addresses("src") == ({"s.png"} if file == markdown else set())
        shown = " ".join(found.words.split())
        assert all(" ".join(terminal(name).split()) in shown for name in names)
