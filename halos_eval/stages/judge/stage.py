"""Judge sampled outputs against reference outputs with alpaca_eval.

The requests are made by our own client, because alpaca_eval's gives up on any error but a rate limit and keeps a failed
answer as if it were one.
"""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

from halos_eval.config.judge import Judge, load_judge
from halos_eval.config.suite import ALPACA_EVAL
from halos_eval.data import prompts
from halos_eval.digests import digest_bytes
from halos_eval.errors import BadInput, EvaluationFailed, JudgeRefused
from halos_eval.stages.identity import Job
from halos_eval.stages.judge.alpaca_eval import TooFewReadError, evaluate_pairs
from halos_eval.stages.judge.client import Completions, Endpoint
from halos_eval.stages.judge.options import JudgeConfig, judge_identity
from halos_eval.stages.run import Outcome, run
from halos_eval.storage import filesystem, layout
from halos_eval.storage.journal import Journal
from halos_eval.storage.manifest import Manifest
from halos_eval.storage.records import CheckpointRef, Coverage, Record, Score, Usage, read_record

log = logging.getLogger(__name__)

# alpaca_eval's figure -> (our metric, the figure that is its standard error)
METRICS = {
    "win_rate": "standard_error",
    "length_controlled_winrate": "lc_standard_error",
    "discrete_win_rate": None,
}
NO_LENGTH_CONTROL = "length control is defined for AlpacaEval's own 805 instructions only"


def judge(config: JudgeConfig) -> Record:
    """Run the stage. Raises BadInput, DataUnavailable, JudgeRefused, Incomplete, StoreError, EvaluationFailed."""
    rows, digest = _read_outputs(config.outputs)
    sampled = read_record(layout.record_beside(config.outputs))
    if sampled and sampled.files.get(Path(config.outputs).name) == digest:
        checkpoint, outputs = sampled.checkpoint, sampled.fingerprint
    else:
        name = str(config.name or rows[0].get("generator") or Path(config.outputs).stem)
        checkpoint, outputs = CheckpointRef(name=name, location=config.outputs, digest=digest), digest
    manifest = config.load_manifest()
    identity = judge_identity(load_judge(config.judge), config.reference, outputs, checkpoint, manifest)
    job = identity.at(filesystem.join(config.output_dir, layout.RECORD))
    judged = read_record(job.record)
    if judged and judged.provenance.inputs.get("outputs_sha256") != digest:
        config = config.model_copy(update={"force": True})  # the same settings have given other outputs since
    return run(job, config, lambda: _work(config, rows, digest, job, manifest))


def _read_outputs(url: str) -> tuple[list[dict[str, Any]], str]:
    try:
        data = filesystem.read_bytes(url)
    except FileNotFoundError as error:
        raise BadInput(f"{url}: there is no such file; `halos-eval sample` writes it") from error
    try:
        rows = json.loads(data)
    except ValueError as error:
        raise BadInput(f"{url} is not JSON ({error}); `halos-eval sample` writes such a file") from error
    if not isinstance(rows, list) or not rows:
        raise BadInput(f"{url} holds no list of outputs")
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("instruction", "output")):
            raise BadInput(f"{url}: item {number} has no text 'instruction' or 'output'")
    return rows, digest_bytes(data)


def _pair(rows: list[dict[str, Any]], reference: prompts.PromptSet, url: str) -> list[dict[str, Any]]:
    """The outputs for the reference's instructions, one for each: alpaca_eval would drop what is missing silently.

    Raises BadInput where one is missing or there are several. Outputs for other instructions are left out.
    """
    wanted = {row["instruction"] for row in reference.rows}
    paired = [row for row in rows if row["instruction"] in wanted]
    given = {row["instruction"] for row in paired}
    if len(given) != len(paired):
        raise BadInput(f"{url} has several outputs for one instruction: judge one sample a prompt (sample_id 0)")
    if missing := len(wanted - given):
        raise BadInput(f"{url} has no output for {missing} of {len(wanted)} reference instructions: sample them first")
    if len(rows) > len(paired):
        log.info("%d outputs are for instructions that the reference has not; left out", len(rows) - len(paired))
    return paired


def _work(config: JudgeConfig, rows: list[dict[str, Any]], digest: str, job: Job, manifest: Manifest | None) -> Outcome:
    began = time.monotonic()
    endpoint = Endpoint.from_environment()
    judge = load_judge(config.judge)
    reference = prompts.load(config.reference, "reference", manifest)
    rows = _pair(rows, reference, config.outputs)
    controlled = config.reference == ALPACA_EVAL
    inputs = reference.inputs("reference") | {
        "outputs_sha256": digest,
        "judge_model": judge.model,
        "endpoint": endpoint.place,
    }
    calibration = None
    if controlled:
        _, calibration = prompts.locate(ALPACA_EVAL, "calibration", manifest)
        inputs["calibration_revision"] = str(calibration)
    parts = filesystem.join(config.output_dir, "parts")
    loaded = time.monotonic()
    journal = Journal(job.journal(parts, config.force))
    completions = Completions(endpoint, judge, journal, config.concurrency)
    try:
        with journal:
            figures, annotations = evaluate_pairs(judge, rows, reference, completions, calibration, job.checkpoint.name)
    except TooFewReadError as error:
        if not error.read:
            filesystem.delete(parts)  # or the next run would find the same useless answers; nothing is lost with them
        raise _no_judgement(completions, judge, error.read) from None
    prompt_tokens, completion_tokens = completions.tokens()
    data = (json.dumps(annotations, indent=1, ensure_ascii=False) + "\n").encode()
    filesystem.delete(job.record)  # an older record must not vouch for the new file
    filesystem.write_bytes(filesystem.join(config.output_dir, "annotations.json"), data)
    scores, missing = _scores(figures, len(reference.rows), completions)
    return Outcome(
        scores=tuple(scores),
        missing=missing,
        coverage=Coverage(attempted=len(reference.rows), scored=int(figures["n_total"])),
        details={"avg_length": float(figures["avg_length"])},
        usage=Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            price_usd=completions.price_usd(),
            load_seconds=loaded - began,
            work_seconds=time.monotonic() - loaded,
        ),
        files={"annotations.json": digest_bytes(data)},
        inputs=inputs,
        parts=parts,
    )


def _no_judgement(completions: Completions, judge: Judge, read: int) -> JudgeRefused | EvaluationFailed:
    if read:
        reason = f"; it refused {len(completions.refused)}: {completions.refused[0]}" if completions.refused else ""
        return EvaluationFailed(
            f"only {read} of {completions.asked} answers of {judge.model} could be read by "
            f"{judge.fn_completion_parser}{reason}. The answers are kept. Fix the judge, "
            "or request new answers with --force"
        )
    if len(completions.refused) == completions.asked:
        return JudgeRefused(
            f"every request was refused: {completions.refused[0]}. Check the judge's model_name and request options"
        )
    return EvaluationFailed(
        f"no answer of {judge.model} could be read by {judge.fn_completion_parser}: does the endpoint give "
        "log-probabilities? A local judge needs structured outputs (see the judge demo)"
    )


def _scores(figures: dict[str, Any], expected: int, completions: Completions) -> tuple[list[Score], dict[str, str]]:
    scores: list[Score] = []
    missing: dict[str, str] = {}
    for metric, error in METRICS.items():
        value = figures.get(metric)
        if value is None or not math.isfinite(value):
            missing[f"{ALPACA_EVAL}-{metric}"] = NO_LENGTH_CONTROL if value is None else f"alpaca_eval gave {value}"
            continue
        stderr = figures.get(error) if error else None
        scores.append(
            Score(
                task=ALPACA_EVAL,
                metric=metric,
                value=value,
                stderr=float(stderr) if stderr is not None and math.isfinite(stderr) else None,
                higher_is_better=True,
            )
        )
    unread = expected - int(figures["n_total"])
    if unread:
        reason = f" (refused: {completions.refused[0]})" if completions.refused else ""
        missing[f"{ALPACA_EVAL}-n_total"] = f"{unread} of {expected} answers could not be read{reason}"
    return scores, missing
