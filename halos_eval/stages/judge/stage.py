"""Judge sampled outputs against reference outputs with alpaca_eval.

alpaca_eval makes the prompts, parses the answers and computes the win rates (github.com/tatsu-lab/alpaca_eval;
length control: arXiv 2404.04475). The requests are made here, because its own client gives up on any error but a rate
limit and keeps a failed answer as if it were one.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field
from pydantic_settings import CliPositionalArg

from halos_eval.config.judge import Judge, load_judge
from halos_eval.config.suite import ALPACA_EVAL
from halos_eval.data import prompts
from halos_eval.digests import digest_bytes
from halos_eval.errors import BadInput, EvaluationFailed, JudgeRefused
from halos_eval.stages.identity import Identity, Job
from halos_eval.stages.judge.client import Completions, Endpoint
from halos_eval.stages.options import StageConfig
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
LEAST_READ = 0.95
"""Share of the judge's answers that must be readable: a win rate over a few of them is no win rate of the set."""
NO_LENGTH_CONTROL = "length control is defined for AlpacaEval's own 805 instructions only"


class JudgeConfig(StageConfig):
    """Compare OUTPUTS with reference outputs by an LLM judge (key: OPENAI_API_KEY; endpoint: OPENAI_BASE_URL)."""

    outputs: CliPositionalArg[str]
    """File or URL of sampled outputs: a JSON list with instruction, output, generator."""
    reference: str = ALPACA_EVAL
    """alpaca_eval (gpt4_1106_preview's outputs from the hub), demo, or a JSON file."""
    judge: str = "gpt-4.1"
    """gpt-4.1, gpt-4.1-mini, demo, or a YAML file in alpaca_eval's format."""
    output_dir: str
    """Folder or URL for record.json and annotations.json."""
    concurrency: int = Field(32, ge=1)
    """Requests in flight at a time."""


def judge_identity(
    judge: Judge, reference: str, outputs: str, checkpoint: CheckpointRef, manifest: Manifest | None = None
) -> Identity:
    """Return the identity. ``outputs``: the sample stage's fingerprint, or the file's digest without one."""
    inputs = {"outputs": outputs, "reference": prompts.digest(reference, "reference", manifest), **judge.inputs()}
    if reference == ALPACA_EVAL:
        inputs["calibration"] = prompts.digest(ALPACA_EVAL, "calibration", manifest)
    return Identity(stage="judge", checkpoint=checkpoint, settings={}, inputs=inputs, packages=("alpaca-eval",))


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
            figures, annotations = _evaluate(judge, rows, reference, completions, calibration, job.checkpoint.name)
    except _TooFewReadError as error:
        if not error.read:
            filesystem.delete(parts)  # or the next run would find the same useless answers; nothing is lost with them
        raise _no_judgement(completions, judge, error.read) from None
    prompt_tokens, completion_tokens = completions.tokens()
    data = (json.dumps(annotations, indent=1, ensure_ascii=False) + "\n").encode()
    filesystem.delete(job.record)  # an older record must not vouch for the new file
    filesystem.write_bytes(filesystem.join(config.output_dir, "annotations.json"), data)
    return Outcome(
        **_scores(figures, len(reference.rows), completions),
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


class _TooFewReadError(Exception):
    """So few answers of the judge could be read that their win rate would not be that of the set."""

    def __init__(self, read: int) -> None:
        super().__init__(read)
        self.read = read


def _evaluate(
    judge: Judge,
    rows: list[dict[str, Any]],
    reference: prompts.PromptSet,
    completions: Completions,
    calibration: str | None,
    name: str,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """alpaca_eval's figures for the pairs, and the annotation of each pair.

    ``calibration``: commit of the data for length control; None without length control.
    """
    import pandas as pd
    from huggingface_hub import hf_hub_download

    def metric(annotations: list[dict[str, Any]], **options: Any) -> Any:
        # Equal outputs are draws without a judge's answer: by themselves they would make a win rate of 50.
        read = int(sum(pd.notna(one["preference"]) for one in annotations)) - (len(reference.rows) - completions.asked)
        if completions.asked and read < LEAST_READ * completions.asked:
            raise _TooFewReadError(read)
        return getattr(metrics, "get_length_controlled_winrate" if calibration else "get_winrate")(
            annotations, **options
        )

    with _known_noise_silenced(), tempfile.TemporaryDirectory() as folder:
        from alpaca_eval import evaluate, metrics
        from alpaca_eval.metrics import glm_winrate

        # It fetches its calibration itself, from wherever the branch stands by then.
        glm_winrate.hf_hub_download = partial(hf_hub_download, revision=calibration)
        # alpaca_eval takes a path only; its own cache and leaderboard would go into site-packages.
        config = Path(folder) / judge.name / "configs.yaml"
        config.parent.mkdir()
        config.write_text(yaml.safe_dump(_alpaca_config(judge)), encoding="utf-8")
        leaderboard, annotations = evaluate(
            model_outputs=pd.DataFrame([{**row, "generator": name} for row in rows]),
            reference_outputs=pd.DataFrame(list(reference.rows)).assign(generator="reference"),
            annotators_config=config,
            name=name,
            output_path=None,
            precomputed_leaderboard=None,
            is_overwrite_leaderboard=True,
            is_cache_leaderboard=False,
            is_return_instead_of_print=True,
            fn_metric=metric,
            metric_kwargs={"save_weights_dir": None} if calibration else {},
            sort_by="win_rate",
            annotation_kwargs={"chunksize": None},
            caching_path=None,
            fn_completions=completions,
        )
    pairs = pd.DataFrame(annotations)
    return leaderboard.loc[name].to_dict(), json.loads(pairs.to_json(orient="records"))


@contextmanager
def _known_noise_silenced() -> Iterator[None]:
    """Keep out of the log what alpaca_eval 0.6.6 says of its own dependencies and of each answer that it cannot read.

    It uses what setuptools and scikit-learn are about to change (the lock pins both), and it logs a traceback for each
    such answer on the root logger; they are counted in the record, and annotations.json has them.
    """

    def no_traceback(record: logging.LogRecord) -> bool:
        return record.exc_info is None

    root = logging.getLogger()
    root.addFilter(no_traceback)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"sklearn\.linear_model\._logistic")
            yield
    finally:
        root.removeFilter(no_traceback)


def _alpaca_config(judge: Judge) -> dict[str, Any]:
    from alpaca_eval.constants import EVALUATORS_CONFIG_DIR

    config = judge.alpaca_config()
    if judge.template_text is None:
        template = EVALUATORS_CONFIG_DIR / judge.prompt_template
        if not template.is_file():
            raise BadInput(f"judge {judge.name}: alpaca_eval ships no {judge.prompt_template}")
        config[judge.name]["prompt_template"] = str(template)
    return config


def _no_judgement(completions: Completions, judge: Judge, read: int) -> JudgeRefused | EvaluationFailed:
    if read:
        reason = f"; it refused {len(completions.refused)}: {completions.refused[0]}" if completions.refused else ""
        return EvaluationFailed(
            f"only {read} of {completions.asked} answers of {judge.model} could be read by "
            f"{judge.fn_completion_parser}{reason}. They are kept; mend the judge, or ask again with --force"
        )
    if len(completions.refused) == completions.asked:
        return JudgeRefused(
            f"every request was refused: {completions.refused[0]}. Check the judge's model_name and request options"
        )
    return EvaluationFailed(
        f"no answer of {judge.model} could be read by {judge.fn_completion_parser}: does the endpoint give "
        "log-probabilities? A local judge needs structured outputs (see the judge demo)"
    )


def _scores(figures: dict[str, Any], expected: int, completions: Completions) -> dict[str, Any]:
    scores, missing = [], {}
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
    return {"scores": tuple(scores), "missing": missing}
