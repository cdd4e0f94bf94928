"""Paths in the store.

runs/CHECKPOINT/STAGE/FINGERPRINT/{record.json, failure.json, ...}     STAGE is sample, judge or harness.TASK
runs/CHECKPOINT/STAGE/FINGERPRINT/NAME-DIGEST.json                     results; the record names those that count
runs/CHECKPOINT/harness.TASK/FINGERPRINT/{generated.json, answers-*}         if the task executes a model's code
plans/SUITE/CHECKPOINT.json                                            the jobs of a run, with their fingerprints
plans/SUITE/CHECKPOINT.claims/                                         the process that saves them now
suites/SUITE.json                                                      the suite's definition at the latest plan
weights/CHECKPOINT.json                                                digest and file stamps of the weights
copies/CHECKPOINT.json                                                 copy in the cache of weights in object storage
judges/DIGEST.json                                                     the same of a judge that is served
series.json                                                            versions of the tools, in order of first use
manifests/SUITE.json                                                   pins of the data of a suite
reports/SUITE/summary.csv
reports/SUITE/rows.json.gz                                             its rows, so that an evaluation computes only one
reports/SUITE/comparisons/A/B.json                                     A compared with B
reports/SUITE/gates/CHECKPOINT.json                                    the outcome of the policy's gate
reports/SUITE/{index, charts}.html                                     the report
reports/SUITE/{checkpoints, samples, pairs}/                           its other pages
reports/SUITE/claims/                                                  the process that writes both now
changes/CHECKPOINT                                                     written again after each of its evaluations
claims/SUITE/CHECKPOINT/                                               the run that evaluates it now
interrupted/SUITE/CHECKPOINT/STAGE.json                                that the infrastructure ended this stage
answers/                                                               the judges' answers, by request
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from halos_eval.digests import digest_bytes, digest_json
from halos_eval.errors import BadInput
from halos_eval.storage import filesystem

# Excludes "..", hidden files, characters of the shell, and "__", which stands for "/" in the store.
NAME = re.compile(r"(?!.*__)[A-Za-z0-9][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9][A-Za-z0-9._-]{0,127}){0,3}")
# What training code calls a checkpoint, such as llama3-8b_sft+kto or "lr=1e-6 beta=0.1". Excludes hidden files, and
# characters of patterns, templates and URLs.
ORIGINAL_PART = re.compile(r"[\w+=,@()~%&!#][\w .+=,@()~%&!#-]{0,254}")
REPLACED_PART = re.compile(r".*-x[0-9a-f]{10}")
RECORD = "record.json"
GENERATED = "generated.json"
"""Record of the answers to a task whose scoring is a job of its own, beside the task's record."""
FAILURE = "failure.json"


def check_name(name: str) -> str:
    """Return ``name`` if it is safe as a folder of the store and as a label. Raises BadInput."""
    if not NAME.fullmatch(name):
        raise BadInput(
            f"checkpoint name {name!r} is invalid; expected up to four parts joined by '/'. A part consists of "
            "letters, digits, '.', '_' and '-', begins with a letter or digit, and does not contain '__'"
        )
    return name


def safe_name(original: str) -> str:
    """Return the name of the checkpoint that its registry calls ``original``. Raises BadInput.

    A safe name stays as it is. In others, each unsafe part between ``/`` becomes SLUG-xDIGEST: other characters are
    ``-`` in the slug, and ten hexadecimal digits of the SHA-256 of the part follow. A safe part that looks like this is
    replaced as well. So the result depends on ``original`` alone, and two names differ unless their digests collide.
    """
    parts = original.split("/")
    if not is_original(original):
        raise BadInput(
            f"checkpoint name {original!r} is invalid; expected up to four parts joined by '/'. A part consists of "
            "letters, digits, spaces and _.+=,@()~%&!#- and does not begin with a space, '.' or '-'. Rename it"
        )
    return check_name("/".join(map(_safe_part, parts)))


def is_original(name: str) -> bool:
    """Return whether ``safe_name`` accepts ``name``."""
    parts = name.split("/")
    return len(parts) <= 4 and all(map(ORIGINAL_PART.fullmatch, parts))


def original_part(part: str, known: Callable[[], Iterable[str]]) -> str:
    """Return the one of the ``known`` parts of names that ``part`` replaces; ``part`` itself if there is none.

    ``known`` is called only if ``part`` looks like a replacement.
    """
    if not REPLACED_PART.fullmatch(part):
        return part
    return next((one for one in known() if ORIGINAL_PART.fullmatch(one) and _safe_part(one) == part), part)


def _safe_part(part: str) -> str:
    if NAME.fullmatch(part) and not REPLACED_PART.fullmatch(part):
        return part
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", part).lstrip("._-")
    slug = re.sub(r"__+", "_", slug)[:100].rstrip("._-") or "checkpoint"
    return f"{slug}-x{digest_bytes(part.encode())[:10]}"


def folder_name(checkpoint: str) -> str:
    """Return the name of a checkpoint's folder: ``/`` becomes ``__``, which no name contains. Raises BadInput.

    ``checkpoint`` is its name, or the registry's own name that was replaced.
    """
    name = checkpoint if NAME.fullmatch(checkpoint) else safe_name(checkpoint)
    return name.replace("/", "__")


def stage_folder(root: str, checkpoint: str, stage: str, task: str | None, fingerprint: str) -> str:
    """Return the folder of one stage's results."""
    return filesystem.join(runs_url(root, checkpoint), f"{stage}.{task}" if task else stage, fingerprint)


def runs_url(root: str, checkpoint: str) -> str:
    """Return the folder with the results of all stages of a checkpoint."""
    return filesystem.join(root, "runs", folder_name(checkpoint))


def record_tail(stage: str, task: str | None, fingerprint: str) -> str:
    """Return the path of a record in the folder of ``runs_url``."""
    name = f"outputs.{RECORD}" if stage == "sample" else RECORD
    return f"{stage}.{task}/{fingerprint}/{name}" if task else f"{stage}/{fingerprint}/{name}"


def definition_url(root: str, suite: str) -> str:
    """Return the URL of a suite's definition as of its latest plan."""
    return filesystem.join(root, "suites", f"{suite}.json")


def weights_url(root: str, checkpoint: str) -> str:
    """Return the URL of the digest of a checkpoint's weights."""
    return filesystem.join(root, "weights", f"{folder_name(checkpoint)}.json")


def copy_url(root: str, checkpoint: str) -> str:
    """Return the URL of the description of the cached copy of a checkpoint that is in object storage."""
    return filesystem.join(root, "copies", f"{folder_name(checkpoint)}.json")


def judge_weights_url(root: str, model: str, revision: str | None) -> str:
    """Return the URL of the digest of a served judge's weights, by a digest of their location."""
    return filesystem.join(root, "judges", f"{digest_json([model, revision])[:16]}.json")


def series_url(root: str) -> str:
    """Return the URL of the list of series."""
    return filesystem.join(root, "series.json")


def plans_url(root: str) -> str:
    """Return the folder of all plans; it has one folder for each suite."""
    return filesystem.join(root, "plans")


def plan_url(root: str, suite: str, checkpoint: str) -> str:
    """Return the URL of the plan of the latest run of ``suite`` on ``checkpoint``."""
    return filesystem.join(plans_url(root), suite, f"{folder_name(checkpoint)}.json")


def manifest_url(root: str, suite: str) -> str:
    """Return the URL of a suite's manifest. Its pins do not change, so all checkpoints are scored on the same data."""
    return filesystem.join(root, "manifests", f"{suite}.json")


def report_url(root: str, suite: str) -> str:
    """Return the URL of a suite's summary."""
    return filesystem.join(root, "reports", suite, "summary.csv")


def rows_url(root: str, suite: str) -> str:
    """Return the URL of the rows of a suite's summary, see `halos_eval.reports.kept_rows`."""
    return filesystem.join(root, "reports", suite, "rows.json.gz")


def report_folder(root: str, suite: str) -> str:
    """Return the folder of a suite's report."""
    return filesystem.join(root, "reports", suite)


def comparisons_url(root: str, suite: str, a: str) -> str:
    """Return the folder of the comparisons of checkpoint ``a``. Raises BadInput for an invalid name."""
    return filesystem.join(root, "reports", suite, "comparisons", folder_name(a))


def comparison_url(root: str, suite: str, a: str, b: str) -> str:
    """Return the URL of the comparison of checkpoint ``a`` with ``b``. Raises BadInput for an invalid name."""
    return filesystem.join(root, "reports", suite, "comparisons", folder_name(a), f"{folder_name(b)}.json")


def gate_url(root: str, suite: str, checkpoint: str) -> str:
    """Return the URL of the outcome of the policy's gate for a checkpoint. Raises BadInput for an invalid name."""
    return filesystem.join(gates_url(root, suite), f"{folder_name(checkpoint)}.json")


def gates_url(root: str, suite: str) -> str:
    """Return the folder with the outcomes of the policy's gate."""
    return filesystem.join(root, "reports", suite, "gates")


def report_claims_url(root: str, suite: str) -> str:
    """Return the folder of the claims of the processes that write a suite's summary."""
    return filesystem.join(root, "reports", suite, "claims")


def changes_url(root: str, suite: str) -> str:
    """Return the folder of the notes on rows of a suite's summary that changed, see `halos_eval.storage.changes`."""
    return filesystem.join(root, "reports", suite, "changes")


def turn_url(root: str, suite: str, checkpoint: str) -> str:
    """Return the folder of the claims of the runs that evaluate ``suite`` on ``checkpoint``."""
    return filesystem.join(root, "claims", suite, folder_name(checkpoint))


def interrupted_url(root: str, suite: str, checkpoint: str) -> str:
    """Return the folder of the notes on stages that the infrastructure ended."""
    return filesystem.join(root, "interrupted", suite, folder_name(checkpoint))


def claims_beside(record: str) -> str:
    """Return the folder of the claims of the processes that make a record."""
    return record.removesuffix(RECORD).removesuffix(GENERATED) + "claims"


def claims_of(document: str) -> str:
    """Return the folder of the claims of the processes that change a document: NAME.json -> NAME.claims."""
    return document.removesuffix(".json") + ".claims"


def answers_url(root: str) -> str:
    """Return the folder of the judges' answers, which all checkpoints share."""
    return filesystem.join(root, "answers")


def record_beside(output: str) -> str:
    """Return the URL of the record of a stage that writes one file: NAME.json -> NAME.record.json."""
    return output.removesuffix(".json") + ".record.json"


def failure_beside(record: str) -> str:
    """Return the URL of the failure note that belongs to a record. A task has one, whichever of its jobs failed."""
    return record.removesuffix(RECORD).removesuffix(GENERATED) + FAILURE
