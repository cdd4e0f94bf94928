"""Compare two checkpoints over the tasks of a suite, paired by item. Only the files of these two are read."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from halos_eval.analysis.paired import ALPHA, Paired, detectable, holm
from halos_eval.errors import BadInput, EvaluationFailed, HalosEvalError
from halos_eval.planning.changes import NAMES
from halos_eval.reports.comparison import Comparison, Flip, TaskComparison, Verdict
from halos_eval.reports.facts import samples_of
from halos_eval.reports.paired_items import Value, measured
from halos_eval.reports.pairing import Pair, pair_of
from halos_eval.reports.remarks import answered_as
from halos_eval.reports.shown import ShownParts, shown
from halos_eval.reports.suite_rows import OWN, SuiteRows
from halos_eval.storage import filesystem, layout
from halos_eval.storage.records import Record

FLIPS = 3
"""Items of a task whose texts are kept."""
LENGTH = 40  # characters of a value that are shown


class _Part(NamedTuple):
    """The two results of one part, with the items that both have."""

    part: str
    items: Pair
    results: tuple[str, str]
    """`samples_of` the two."""
    remark: str


def compare(root: str, suite: str, a: str, b: str, margin: float) -> Comparison:
    """Compare checkpoint ``a`` with ``b``. Differences up to ``margin`` (0.01: one percentage point) do not matter.

    Raise BadInput if one of them has no plan of the suite, and StoreError. A task with damaged samples is not
    comparable, and the others are unaffected.
    """
    if layout.folder_name(a) == layout.folder_name(b):
        raise BadInput(f"{a} and {b} are the same checkpoint; expected two. Name another one")
    rows = SuiteRows(root, suite)
    with ThreadPoolExecutor(2) as pool:
        ours, theirs = pool.map(lambda name: shown(root, suite, name, rows), (a, b))
    return compare_shown(suite, ours, theirs, margin)


def compare_shown(suite: str, ours: ShownParts, theirs: ShownParts, margin: float) -> Comparison:
    """Compare two checkpoints whose records are known. Raise StoreError."""
    names = dict.fromkeys(one.part for one in (*ours.parts, *theirs.parts) if one.part != "sample")
    pairs = [_pair(name, ours, theirs) for name in names]
    found = [(one, one.items.difference()) for one in pairs if isinstance(one, _Part)]
    known = [(one, difference) for one, difference in found if difference]
    corrected = iter(holm([difference.p for _, difference in known]))
    judged = {one.part: _judged(one, difference, next(corrected), len(known), margin) for one, difference in known}
    tasks = [judged.get(_name(one)) or _not_comparable(one) for one in pairs]
    flips = {one.part: _flips(one.part, one.items, judged[one.part]) for one, _ in known}
    order = [
        part for verdict in (Verdict.WORSE, Verdict.BETTER) for part, one in judged.items() if one.verdict == verdict
    ]
    return Comparison(
        a=ours.checkpoint,
        b=theirs.checkpoint,
        suite=suite,
        margin=margin,
        verdict=overall([one.verdict for one in tasks]),
        differs=tuple(f"{one.task}: {one.reason}" for one in tasks if one.verdict == Verdict.NOT_COMPARABLE),
        tasks=tuple(tasks),
        flips=tuple(flip for part in order for flip in flips[part]),
    )


def common_suite(root: str, a: str, b: str) -> str:
    """Return the suite that has evaluated both checkpoints. Raise BadInput if there is none or more than one."""
    plans = filesystem.entries(layout.plans_url(root))
    suites = sorted(name for name, entry in plans.items() if entry.is_folder)
    has = {
        name: {suite for suite in suites if filesystem.exists(layout.plan_url(root, suite, name))} for name in (a, b)
    }
    for name, own in has.items():
        if not own:
            raise BadInput(
                f"{root} has no plan for {name} in any suite ({', '.join(suites) or 'none'}). Evaluate it first"
            )
    both = sorted(has[a] & has[b])
    if not both:
        suites_of = "; ".join(f"{name} by {', '.join(sorted(own))}" for name, own in has.items())
        raise BadInput(f"no suite has evaluated both checkpoints ({suites_of}). Evaluate both by one suite")
    if len(both) > 1:
        raise BadInput(f"several suites have evaluated both ({', '.join(both)}). Choose one with --suite")
    return both[0]


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """Return what can be said over all tasks: worse in one is worse, and only all together are without a difference."""
    found = set(verdicts)
    if found <= {Verdict.NOT_COMPARABLE}:
        return Verdict.NOT_COMPARABLE
    for verdict in (Verdict.WORSE, Verdict.BETTER):
        if verdict in found:
            return verdict
    return Verdict.SAME if found == {Verdict.SAME} else Verdict.UNKNOWN


def _name(one: _Part | TaskComparison) -> str:
    return one.part if isinstance(one, _Part) else one.task


def _not_comparable(one: _Part | TaskComparison) -> TaskComparison:
    if isinstance(one, TaskComparison):
        return one
    return _refused(one.part, "too few independent groups of documents for an error", one.items.metric)


def _refused(part: str, reason: str, metric: str = "") -> TaskComparison:
    return TaskComparison(task=part, metric=metric, verdict=Verdict.NOT_COMPARABLE, reason=reason)


def _pair(part: str, ours: ShownParts, theirs: ShownParts) -> _Part | TaskComparison:
    """Return the items that both results of a part have, or why they are not comparable."""
    one, other = ours.part(part), theirs.part(part)
    absent = [side for side, found in (("A", one), ("B", other)) if found is None or found.record is None]
    if one is None or other is None or one.record is None or other.record is None:
        reasons = {found.reason for found in (one, other) if found and found.reason and found.record is None}
        return _refused(
            part, f"{' and '.join(absent)} without a result" + "".join(f" ({why})" for why in sorted(reasons))
        )
    if why := _obstacle(ours, theirs, one.record, other.record):
        return _refused(part, why)
    try:
        a, b = (
            measured(found.url, record, found.metric) for found, record in ((one, one.record), (other, other.record))
        )
    except HalosEvalError as error:
        return _refused(part, str(error))
    try:
        items = pair_of(a, b)
    except EvaluationFailed as error:
        return _refused(part, str(error), a.metric)
    results = samples_of(one.record) or "", samples_of(other.record) or ""
    return _Part(part, items, results, _remark(one.record, other.record, (one.reason, other.reason), items.only_one))


def _obstacle(ours: ShownParts, theirs: ShownParts, one: Record, other: Record) -> str:
    """Return why two results say nothing about the two checkpoints; empty if they do."""
    outdated = {"A": ours.outdated(one), "B": theirs.outdated(other)}
    if any(outdated.values()):
        return "; ".join(f"{side} {why}" for side, why in outdated.items() if why)
    found = differences(one, other)
    if one.stage == "judge" and ours.sampled and theirs.sampled:
        found += [f"sampled with {words}" for words in differences(ours.sampled, theirs.sampled)]
    return ", ".join(found)


def differences(one: Record, other: Record) -> list[str]:
    """Return what differs between two results besides the model: settings, data, judge, versions of tools."""
    found = []
    for part in ("settings", "inputs", "tools"):
        a, b = one.identity.get(part, {}), other.identity.get(part, {})
        for key in sorted((a.keys() | b.keys()).difference(OWN)):
            if a.get(key) != b.get(key):
                values = f" {str(a.get(key))[:LENGTH]} and {str(b.get(key))[:LENGTH]}"
                found.append(NAMES.get(key, key) if part == "inputs" else key + values)
    if one.identity.get("logic") != other.identity.get("logic"):
        found.append("the logic of halos-eval")
    return found


def _remark(one: Record, other: Record, outdated: tuple[str, str], only_one: int) -> str:
    remarks = [f"{side} is {why}" for side, why in zip("AB", outdated, strict=True) if why]
    remarks += [f"{only_one} items have only one score"] if only_one else []
    names = [sorted(answered_as(record)) for record in (one, other)]
    if names[0] != names[1]:
        remarks.append(f"the judge answered as {' / '.join(names[0])} and as {' / '.join(names[1])}")
    return "; ".join(remarks)


def _judged(one: _Part, found: Paired, p_holm: float, tests: int, margin: float) -> TaskComparison:
    a, b = one.items.means
    better, worse = _flipped(one.items)
    return TaskComparison(
        task=one.part,
        metric=one.items.metric,
        n=found.n,
        clusters=found.clusters,
        a=a,
        b=b,
        difference=found.difference,
        low=found.low,
        high=found.high,
        p=found.p,
        p_holm=p_holm,
        detectable=detectable(found, tests, one.items.span),
        test=found.test,
        verdict=_verdict(found, p_holm, margin * one.items.span),
        reason=one.remark,
        better=tuple(better),
        worse=tuple(worse),
        result_a=one.results[0],
        result_b=one.results[1],
    )


def _verdict(found: Paired, p_holm: float, margin: float) -> Verdict:
    if -margin <= found.low and found.high <= margin:
        return Verdict.SAME
    if p_holm < ALPHA:
        return Verdict.BETTER if found.difference > 0 else Verdict.WORSE
    return Verdict.UNKNOWN


def _gain(items: Pair, key: str) -> float:
    return items.sign * (items.a[key].value - items.b[key].value)


def _flipped(items: Pair) -> tuple[list[str], list[str]]:
    """Return the ids on which A is better, and worse, the largest difference first, then the shortest texts.

    Of a judge's preferences, only those count in which another answer wins.
    """

    def state(value: float) -> float:
        return value if items.draw is None else (value > items.draw) - (value < items.draw)

    changed = [key for key in items.a if state(items.a[key].value) != state(items.b[key].value)]
    changed.sort(key=lambda key: (-abs(_gain(items, key)), _length(items, key)))
    return [key for key in changed if _gain(items, key) > 0], [key for key in changed if _gain(items, key) < 0]


def _length(items: Pair, key: str) -> int:
    ours, theirs = items.a[key], items.b[key]
    return len(ours.prompt) + len(ours.answer) + len(theirs.answer)


def _flips(part: str, items: Pair, task: TaskComparison) -> list[Flip]:
    ids = task.worse if task.verdict == Verdict.WORSE else task.better
    return [_flip(part, key, items.a[key], items.b[key]) for key in ids[:FLIPS]]


def _flip(part: str, key: str, a: Value, b: Value) -> Flip:
    texts = {"prompt": a.prompt, "reference": a.reference, "answer_a": a.answer, "answer_b": b.answer}
    return Flip(task=part, id=key, a=a.value, b=b.value, **texts)
