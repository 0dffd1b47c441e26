"""What a comparison says in words: what distillation did, and what has to be known before one believes it."""

from collections.abc import Iterable
from dataclasses import dataclass

from src.exp.compare.comparison import CONTROLS, DIFFERENCE, LABELS, STUDENTS, Comparison
from src.exp.compare.significance import PairedTest

_STUDENT_NAMES = {"baseline": "the baseline", "distill": "the distilled student"}
_REFERENCE_NAMES = {"popular": "the most popular items", "markov_titles": "chain + TF-IDF of the titles"}
_SIGNIFICANT = ("better", "worse")
_AGAINST_CONTROLS = {"better": "beats the", "cannot tell": "does no better than the", "worse": "is worse than the"}
_OF_TEXT = ("tfidf", "shuffled")
_HOW_TO_COMPARE = (
    "To compare them, train the baseline like the distilled student: src.exp.run_student_baseline with the same "
    "settings in the same folder (hydra.run.dir), then src.exp.run_eval_all again."
)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The first lines of a report.

    Attributes:
        tone: `better` (and better than every reference and than every control that was tried), `qualified`, `worse`,
            `cannot tell`, `not comparable` or `one student`.
        headline: the verdict and what qualifies it, one sentence.
        numbers: the difference and the two students' values; empty where they are not compared.
        surroundings: further sentences.
    """

    tone: str
    headline: str
    numbers: str
    surroundings: list[str]


def verdict(comparison: Comparison, tests: dict[str, PairedTest]) -> Verdict:
    """The verdict of a comparison, from its tests (`comparison_tests`)."""
    surroundings = [*comparison.notes, *_references(comparison), *_one_seed(comparison)]
    if len(comparison.seeds) < len(STUDENTS):
        tone, headline, numbers = "one student", _one_student(comparison), ""
    elif comparison.unlike:
        tone, numbers = "not comparable", ""
        headline = f"Baseline and distilled student are not comparable: {comparison.unlike}"
        surroundings = [_HOW_TO_COMPARE, *surroundings]
    else:
        found = tests[DIFFERENCE]
        tone = "qualified" if found.verdict == "better" and _is_qualified(comparison) else found.verdict
        headline, numbers = _headline(comparison, found.verdict), _numbers(comparison, found)
        surroundings = [*_whose_gain(comparison), *surroundings]
    return Verdict(tone=tone, headline=headline, numbers=numbers, surroundings=surroundings)


def _headline(comparison: Comparison, found: str) -> str:
    claim = "Cannot tell whether distillation helps"
    if found in _SIGNIFICANT:
        claim = f"The distilled student is {found} than the baseline"
    controls = _controls(comparison, "it" if found in _SIGNIFICANT else "the distilled student")
    return f"{claim}{_below(comparison, found)}{controls}."


def _is_qualified(comparison: Comparison) -> bool:
    """Whether something simpler does as well as the distilled student."""
    below = any(_students_below(comparison, reference, ["distill"]) for reference in comparison.references)
    return below or any(control.verdict != "better" for control in (comparison.controls or {}).values())


def _students_below(comparison: Comparison, reference: str, students: Iterable[str]) -> list[str]:
    return [name for name in students if comparison.value(name) < comparison.value(reference)]


def _below(comparison: Comparison, found: str) -> str:
    """Which reference the winner does not reach; where there is no winner, either student."""
    students = {"better": ["distill"], "worse": ["baseline"]}.get(found, list(STUDENTS))
    below = {name: _students_below(comparison, name, students) for name in comparison.references}
    parts = [(f"{_reference_name(name)} ({comparison.value(name):.4f})", who) for name, who in below.items() if who]
    if found == "better" and parts:
        return f", but below {' and '.join(name for name, _ in parts)}"
    return "".join(f", and {_subject(who)} below {name}" for name, who in parts)


def _reference_name(reference: str) -> str:
    return _REFERENCE_NAMES.get(reference, f"the {LABELS[reference]}")


def _subject(students: list[str]) -> str:
    return f"{_STUDENT_NAMES[students[0]]} is" if len(students) == 1 else "both students are"


def _controls(comparison: Comparison, subject: str) -> str:
    """Which control teachers' students are beaten, and which are not; their intervals stand in a table."""
    if comparison.controls is None:
        return ""
    if not comparison.controls:
        return "; no control teacher was tried"
    parts = {found: _against(comparison.controls, found) for found in _AGAINST_CONTROLS}
    others = " and ".join(filter(None, (parts["cannot tell"], parts["worse"])))
    return f"; {subject} {', but '.join(filter(None, (parts['better'], others)))}"


def _against(controls: dict[str, PairedTest], found: str) -> str:
    """The controls with this verdict, in words; empty where there are none."""
    named = [f"{CONTROLS[name]} ({test.difference:+.4f})" for name, test in controls.items() if test.verdict == found]
    return f"{_AGAINST_CONTROLS[found]} control{'s' * (len(named) > 1)} {', '.join(named)}" if named else ""


def _whose_gain(comparison: Comparison) -> list[str]:
    """Whether the gain is the LLM's; nothing where the teacher is no LLM."""
    controls = comparison.controls
    if controls is None:
        return []
    missing = [CONTROLS[name] for name in _OF_TEXT if name not in controls]
    equal = [CONTROLS[name] for name in _OF_TEXT if name in controls and controls[name].verdict != "better"]
    found = [
        *([f"It does not beat {' or '.join(equal)}."] if equal else []),
        *([f"Not tried: {' and '.join(missing)}; src.exp.run_study study=controls tries them."] if missing else []),
    ]
    return [" ".join(["Only what beats TF-IDF and shuffled titles is the LLM's.", *(found or ["It beats both."])])]


def _numbers(comparison: Comparison, test: PairedTest) -> str:
    before, after = comparison.value("baseline"), comparison.value("distill")
    relative = f", {(after / before - 1) * 100:+.1f} %" if before > 0 else ""
    return (
        f"Difference {test.difference:+.4f} test {comparison.metric}, 95 % interval {test.low:+.4f} to "
        f"{test.high:+.4f}. Baseline {before:.4f}, distilled {after:.4f}{relative}."
    )


def _one_student(comparison: Comparison) -> str:
    (name,) = comparison.seeds
    return (
        "Only one student was found, so distillation has nothing to be compared with. "
        f"Test {comparison.metric}: {LABELS[name]} {comparison.value(name):.4f}."
    )


def _references(comparison: Comparison) -> list[str]:
    """The values of the references, and which student is below one."""
    references = comparison.references
    if not references:
        return []
    values = ", ".join(f"{LABELS[name]} {comparison.value(name):.4f}" for name in references)
    below = {name: _students_below(comparison, name, comparison.seeds) for name in references}
    found = [
        f"Below {LABELS[n]}: {'; '.join(LABELS[s] for s in students)}." for n, students in below.items() if students
    ]
    advice = ["A student below a reference is not worth distilling."] if found else []
    return [" ".join([f"References without training: {values}.", *found, *advice])]


def _one_seed(comparison: Comparison) -> list[str]:
    if max(map(len, comparison.seeds.values())) > 1:
        return []
    return ["This is one seed: give runs of others (eval.seed_dirs) before drawing conclusions."]
