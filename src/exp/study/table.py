"""The table of a study: variants of a training over several seeds, each against one of them."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from src.core.errors import UserError
from src.exp.compare.significance import PairedTest, Ranks, paired_tests, user_metric
from src.exp.compare.studies import LEAD, LEAD_BOUNDS, LEAD_VERDICT, NOT_COMPARABLE, OTHER_RANKINGS

_Line = dict[str, float | str | None]  # by column


def study_table(
    ranks: dict[str, list[Ranks]],
    *,
    metric: str,
    masked: bool = False,
    reference: str,
    references: Mapping[str, str] | None = None,
    validation: Mapping[str, Sequence[float]] | None = None,
    unlike: Mapping[str, str] | None = None,
    leader: str | None = None,
) -> pd.DataFrame:
    """One line per variant: its metric over seeds, and its difference to the reference with a 95 % interval.

    Args:
        ranks: by variant, the ranks of its runs (seeds).
        metric: such as `ndcg@10`; masked: whether the ranking that decides leaves the history's items out.
        reference: the variant that the others are tested against.
        references: by variant, another one that it is tested against instead.
        validation: by variant, the best validation value of each run.
        unlike: by variant, what differs from the reference besides what is studied (data, budget), in words; such a
            variant is not tested. Other test rows than the reference's are found here and need no entry.
        leader: a variant that is tested against every other that is tested, too.

    Returns:
        Columns seeds, users, validation (mean; only if given), mean and std (over seeds, n - 1; none for one seed),
        masked (mean with the history removed; where `masked` decides: shown, with it left in), difference, low, high,
        p_value (Holm-corrected over the variants that are tested), verdict, and `not comparable`, the words where there
        is no test. The reference has none of the last six. With a leader also lead, lead_low, lead_high (its difference
        to each other) and lead_verdict.

    Raises:
        UserError: the reference is not among the variants, or runs of one variant have other test rows.
    """
    if reference not in ranks:
        raise UserError(f"reference {reference!r}: is none of the variants; give one of {', '.join(ranks)}")
    other = {name: (references or {}).get(name) or reference for name in ranks if name != reference}
    words = {name: _unlike(name, ranks, against, unlike or {}) for name, against in other.items()}
    pairs = {name: (ranks[name], ranks[other[name]]) for name, found in words.items() if not found}
    tests = paired_tests(pairs, metric, masked)
    lines: dict[str, _Line] = {}
    for name, runs in ranks.items():
        own = _over_seeds(runs, metric, masked, None if validation is None else validation.get(name, ()))
        lines[name] = own | _difference(tests.get(name), words.get(name, ""))
    if leader is not None:
        against = {name: (ranks[leader], ranks[name]) for name in (reference, *pairs) if name != leader in pairs}
        leads = paired_tests(against, metric, masked)
        for name, line in lines.items():
            line |= _lead(leads.get(name))
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("variant")


def _unlike(name: str, ranks: dict[str, list[Ranks]], reference: str, given: Mapping[str, str]) -> str:
    """Why a variant is not tested; empty where it is."""
    return given.get(name, "") or _other_rows(ranks[name][0], ranks[reference][0])


def _other_rows(one: Ranks, other: Ranks) -> str:
    """How the test rows of the users that both know differ; a teacher may know a sample of the users."""
    users = np.intersect1d(one["user"], other["user"])
    if len(users) == 0:
        return "no test user in common"
    left, right = (
        sorted(zip(run["user"][kept].tolist(), run["target"][kept].tolist(), strict=True))
        for run in (one, other)
        for kept in [np.isin(run["user"], users)]
    )
    return "" if left == right else "other test rows"


def _over_seeds(runs: list[Ranks], metric: str, masked: bool, validation: Sequence[float] | None) -> _Line:
    values = [float(user_metric([run], metric, masked)[1].mean()) for run in runs]
    line: _Line = {"seeds": len(runs), "users": len(user_metric(runs, metric)[0])}
    if validation is not None:
        line["validation"] = float(np.mean(validation)) if len(validation) else np.nan
    line["mean"] = float(np.mean(values))
    line["std"] = float(np.std(values, ddof=1)) if len(runs) > 1 else np.nan
    line[OTHER_RANKINGS[masked]] = float(user_metric(runs, metric, not masked)[1].mean())
    return line


def _difference(test: PairedTest | None, words: str) -> _Line:
    line: _Line = dict.fromkeys(("difference", "low", "high", "p_value"), np.nan)
    line |= {"verdict": None, NOT_COMPARABLE: words}
    if test is not None:
        line |= {"difference": test.difference, "low": test.low, "high": test.high}
        line |= {"p_value": test.p_value, "verdict": test.verdict}
    return line


def _lead(test: PairedTest | None) -> _Line:
    if test is None:
        return {**dict.fromkeys((LEAD, *LEAD_BOUNDS), np.nan), LEAD_VERDICT: None}
    return {
        LEAD: test.difference,
        **dict(zip(LEAD_BOUNDS, (test.low, test.high), strict=True)),
        LEAD_VERDICT: test.verdict,
    }
