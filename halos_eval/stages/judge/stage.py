"""Judge sampled outputs against reference outputs with alpaca_eval.

This project's own client makes the requests. alpaca_eval's client gives up on any error other than a rate limit, and
stores a failed request as an answer.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

from halos_eval.checkpoints.weights import short_name
from halos_eval.config.judge import Judge
from halos_eval.config.suite import ALPACA_EVAL
from halos_eval.data import prompts
from halos_eval.digests import digest_bytes
from halos_eval.errors import BadInput, EvaluationFailed, JudgeRefused
from halos_eval.stages.identity import Job
from halos_eval.stages.judge.alpaca_eval import TooFewReadError, evaluate_pairs
from halos_eval.stages.judge.answers import Answers
from halos_eval.stages.judge.client import Completions, unreadable
from halos_eval.stages.judge.options import JudgeConfig, judge_identity, timeout_of
from halos_eval.stages.judge.outputs import cut_outputs, find_outputs, read_outputs
from halos_eval.stages.judge.served import Served, present
from halos_eval.stages.judge.swapped import BOTH_ORDERS, FLIP_RATE, FLIPS, flips
from halos_eval.stages.run import Outcome, run
from halos_eval.storage import filesystem, layout, result_files
from halos_eval.storage.claims import this_process
from halos_eval.storage.manifest import Manifest
from halos_eval.storage.records import CheckpointRef, Coverage, Record, Score, Usage, readable_record

log = logging.getLogger(__name__)

# alpaca_eval's figure -> (our metric, the figure that is its standard error)
METRICS = {
    "win_rate": "standard_error",
    "length_controlled_winrate": "lc_standard_error",
    "discrete_win_rate": None,
}
NO_LENGTH_CONTROL = "length control is defined for AlpacaEval's own 805 instructions only"


def judge(config: JudgeConfig) -> Record:
    """Run the stage.

    Raise BadInput, DataUnavailable, JudgeRefused, Incomplete, StoreError, CostLimit, Waiting,
    EvaluationFailed.
    """
    with present(config):
        return _judge(config)


def _judge(config: JudgeConfig) -> Record:
    url, data, sampled = find_outputs(config.outputs)
    rows, digest = read_outputs(url, data), digest_bytes(data)
    if sampled:
        checkpoint, outputs = sampled.checkpoint, sampled.fingerprint
    else:
        # HALOs' sampler writes the model's path as the generator.
        name = config.name or short_name(str(rows[0].get("generator") or Path(url).stem))
        checkpoint, outputs = CheckpointRef(name=name, location=url, digest=digest), digest
    manifest = config.load_manifest()
    served = Served(config, manifest)
    identity = judge_identity(
        served.judge, config.reference, outputs, checkpoint, manifest, served.identity, config.swap
    )
    job = identity.at(filesystem.join(config.output_dir, layout.RECORD))
    force = config.force and not _forced_already(job.record, config)
    again = (config.force_id or "again") if force else None
    judged, _ = readable_record(job.record)
    if judged and judged.provenance.inputs.get("outputs_sha256") != digest:
        force = True  # the same settings have produced other outputs since
    config = config.model_copy(update={"force": force})
    return run(job, config, lambda: _work(config, served, rows, digest, job, manifest, again))


def _forced_already(record: str, config: JudgeConfig) -> bool:
    """Return whether the record is that of the plan which forces this run: Airflow retries a pod that it lost."""
    found, _ = readable_record(record)
    return bool(config.force_id and found and found.provenance.config.get("force_id") == config.force_id)


def _pair(rows: list[dict[str, Any]], reference: prompts.PromptSet, url: str) -> list[dict[str, Any]]:
    """Return the outputs for the reference's instructions, one each. Skip outputs for other instructions.

    Raise BadInput if an instruction has no output, which alpaca_eval would silently drop, or several.
    """
    wanted = {row["instruction"] for row in reference.rows}
    paired = [row for row in rows if row["instruction"] in wanted]
    given = Counter(row["instruction"] for row in paired)
    if len(given) != len(paired):
        text, number = given.most_common(1)[0]
        raise BadInput(
            f"{url} has several outputs for one instruction ({number} for {text[:80]!r}); expected one. "
            "Keep one sample per prompt (sample_id 0)"
        )
    if not paired:
        raise BadInput(
            f"{url} answers other prompts than the reference {reference.name}: none of its {len(rows)} instructions is "
            f"one of the {len(wanted)} there. Name the reference of these prompts with --reference"
        )
    if missing := wanted - given.keys():
        raise BadInput(
            f"{url} has no output for {len(missing)} of {len(wanted)} reference instructions, such as "
            f"{min(missing)[:80]!r}. Sample them first"
        )
    if len(rows) > len(paired):
        log.info("skipped %d outputs for instructions that are not in the reference", len(rows) - len(paired))
    return paired


def _work(
    config: JudgeConfig,
    served: Served,
    rows: list[dict[str, Any]],
    digest: str,
    job: Job,
    manifest: Manifest | None,
    again: str | None,
) -> Outcome:
    began = time.monotonic()
    judge = served.judge
    if config.batch and judge.client.azure_endpoint:
        raise BadInput(
            f"--batch does not support Azure ({judge.client.azure_endpoint}), whose deployments for batches answer no "
            "single requests. Run it without --batch"
        )
    reference = prompts.load(config.reference, "reference", manifest)
    rows = _pair(rows, reference, config.outputs)
    cut = cut_outputs(rows)
    controlled = config.reference == ALPACA_EVAL
    inputs = reference.inputs("reference") | {
        "outputs_sha256": digest,
        "generator": str(rows[0].get("generator", "")),
        "judge_model": served.title,
    }
    calibration = None
    if controlled:
        _, calibration = prompts.locate(ALPACA_EVAL, "calibration", manifest)
        inputs["calibration_revision"] = str(calibration)
    answers = Answers(config.answers or filesystem.join(config.output_dir, "answers"), again)
    with served.endpoint() as endpoint:
        loaded = time.monotonic()
        completions = Completions(
            endpoint, judge, answers, config.concurrency, timeout_of(config, judge), max_cost=config.max_cost
        )
        if config.batch:
            completions.batch_owner = config.owner or this_process()
        try:
            figures, annotations = evaluate_pairs(
                judge, rows, reference, completions, calibration, job.checkpoint.name, config.swap, cut
            )
        except TooFewReadError as error:
            raise _no_judgement(completions, judge, error) from None
    inputs |= {"endpoint": endpoint.place} | served.inputs
    superfluous = answers.finish()
    if completions.snapshots:
        inputs["judge_snapshots"] = ", ".join(sorted(completions.snapshots))
        inputs["judge_answered_as"] = json.dumps(sorted(completions.models))
    if len(completions.models) > 1:
        log.warning("several versions of the judge answered: %s", inputs["judge_snapshots"])
    inputs["judge_prices"] = completions.bill.prices()
    prompt_tokens, completion_tokens = completions.bill.counted()
    # One pair on each line: with an indent, Python's own encoder takes ten times as long.
    data = ("[\n" + ",\n".join(json.dumps(one, ensure_ascii=False) for one in annotations) + "\n]\n").encode()
    files = result_files.write(config.output_dir, {"annotations.json": data})
    scores, missing = _scores(figures, len(reference.rows), completions, len(cut))
    details = {"avg_length": float(figures["avg_length"])} | ({"cut_outputs": len(cut)} if cut else {})
    if config.swap:
        flipped, both = flips(annotations)
        details |= {FLIPS: flipped, BOTH_ORDERS: both}
        if both:
            scores.append(_flip_rate(flipped, both))
        else:
            missing[f"{ALPACA_EVAL}-{FLIP_RATE}"] = "the judge was asked about no pair: all outputs are equal"
    return Outcome(
        scores=tuple(scores),
        missing=missing,
        coverage=Coverage(attempted=len(reference.rows), scored=int(figures["n_total"])),
        details={**details, **completions.bill.details()},
        usage=Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            price_usd=completions.bill.total(),
            load_seconds=loaded - began,
            work_seconds=time.monotonic() - loaded,
            resumed=completions.kept / completions.asked if served.identity and completions.asked else None,
        ),
        files=files,
        inputs=inputs,
        parts=superfluous,
    )


def _no_judgement(completions: Completions, judge: Judge, few: TooFewReadError) -> JudgeRefused | EvaluationFailed:
    if few.read:
        reason = f"; it refused {len(completions.refused)}: {completions.refused[0]}" if completions.refused else ""
        if completions.cut:
            reason += f"; {completions.cut} ended without text at the limit of tokens, which hidden reasoning uses up"
        return EvaluationFailed(
            f"{judge.fn_completion_parser} could parse only {few.read} of {few.asked} answers of "
            f"{judge.model}{reason}. The answers are kept. Fix the judge, "
            "or request new answers with --force"
        )
    if len(completions.refused) == completions.asked:
        return JudgeRefused(
            f"every request was refused: {completions.refused[0]}. Check the judge's model_name and request options"
        )
    return EvaluationFailed(unreadable(judge, completions.received))


def _flip_rate(flipped: int, both: int) -> Score:
    return Score(task=ALPACA_EVAL, metric=FLIP_RATE, value=100 * flipped / both, higher_is_better=False)


def _scores(
    figures: dict[str, Any], pairs: int, completions: Completions, cut: int = 0
) -> tuple[list[Score], dict[str, str]]:
    """Return the scores, and why others are missing. The judgements of ``cut`` outputs do not count."""
    scores: list[Score] = []
    missing: dict[str, str] = {}
    for metric, error in METRICS.items():
        value = figures.get(metric)
        if value is None or not math.isfinite(value):
            missing[f"{ALPACA_EVAL}-{metric}"] = NO_LENGTH_CONTROL if value is None else f"alpaca_eval returned {value}"
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
    expected = pairs - cut
    unread = expected - int(figures["n_total"])
    if unread:
        reason = f" (refused: {completions.refused[0]})" if completions.refused else ""
        missing[f"{ALPACA_EVAL}-n_total"] = f"{unread} of {expected} answers could not be read{reason}"
    return scores, missing
