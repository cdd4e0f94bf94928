"""The options of the judge stage, and which inputs determine its scores."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from pydantic_settings import CliPositionalArg, CliSuppress

from halos_eval.checkpoints.weights import Weights
from halos_eval.config.judge import Judge
from halos_eval.config.served_judge import ServedJudge
from halos_eval.config.suite import ALPACA_EVAL
from halos_eval.data import prompts
from halos_eval.stages.identity import SERVER_PACKAGE, Identity
from halos_eval.stages.options import StageConfig
from halos_eval.storage.manifest import Manifest
from halos_eval.storage.records import CheckpointRef


class JudgeConfig(StageConfig):
    """Compare OUTPUTS with reference outputs, using an LLM judge (key: OPENAI_API_KEY; endpoint: OPENAI_BASE_URL)."""

    outputs: CliPositionalArg[str]
    """File or URL of sampled outputs: a JSON list with instruction, output, generator. Or NAME.record.json of
    `halos-eval sample`, or the NAME.json that it got as --output: then its record says which file it is."""
    reference: str = ALPACA_EVAL
    """alpaca_eval (gpt4_1106_preview's outputs from the hub), demo, or a JSON file."""
    judge: str = "gpt-4.1"
    """gpt-4.1, gpt-4.1-mini, demo, the name of one that alpaca_eval ships, a YAML file in alpaca_eval's format, or
    {"model": FOLDER_OR_REPOSITORY} for a model that `halos-eval serve` serves at the same --exchange."""
    exchange: str | None = None
    """Folder that `halos-eval serve` shares with this command, on the same machine."""
    output_dir: str
    """Folder or URL for record.json and annotations-DIGEST.json."""
    swap: bool = False
    """Ask about every pair in both orders. The preference is the mean of both answers, and the flips are counted."""
    concurrency: int = Field(64, ge=1)
    """Maximum number of concurrent requests. It is reached as answers come, and a rate limit is kept."""
    timeout: float | None = Field(None, gt=0)
    """Seconds to wait for an answer (default: the judge file's; else 60 if it has max_tokens up to 1000, else 600)."""
    answers: str | None = None
    """Folder or URL that keeps paid answers for all runs (default: answers in OUTPUT_DIR)."""
    max_cost: float | None = Field(None, ge=0)
    """US dollars that this judgement may cost in all its runs. Finished answers are kept; raise it to continue."""
    batch: bool = False
    """Use the vendor's Batch API, for half the price: submit and end with exit code 9; run it again to collect."""
    force_id: CliSuppress[str | None] = None
    """Name of the plan that forces this run: it asks again once, however often the stage is started."""


SWAP = "swap"
"""Key of an identity's settings: each pair is asked in both orders. Absent otherwise, as before there was a choice."""
SHORT_ANSWER_TOKENS = 1000
SHORT_ANSWER_SECONDS, LONG_ANSWER_SECONDS = 60.0, 600.0
"""How long an answer may take. A judge without a small ``max_tokens`` may reason for minutes."""


def timeout_of(config: JudgeConfig, judge: Judge) -> float:
    """Return the seconds to wait for an answer."""
    tokens = judge.completions_kwargs.get("max_tokens")
    short = isinstance(tokens, int) and tokens <= SHORT_ANSWER_TOKENS
    return config.timeout or judge.client.timeout or (SHORT_ANSWER_SECONDS if short else LONG_ANSWER_SECONDS)


def judge_identity(
    judge: Judge,
    reference: str,
    outputs: str,
    checkpoint: CheckpointRef,
    manifest: Manifest | None = None,
    served: tuple[ServedJudge, Weights] | None = None,
    swap: bool = False,
) -> Identity:
    """Return the identity. ``outputs`` is the sample stage's fingerprint or, without one, the file's digest.

    ``served`` are the settings and the weights of a judge that is served.
    """
    inputs = {"outputs": outputs, "reference": prompts.digest(reference, "reference", manifest), **judge.inputs()}
    if reference == ALPACA_EVAL:
        inputs["calibration"] = prompts.digest(ALPACA_EVAL, "calibration", manifest)
    settings: dict[str, Any] = {SWAP: True} if swap else {}
    packages: tuple[str, ...] = ("alpaca-eval",)
    if served:
        settings |= served[0].model_dump(include={"dtype", "max_model_len"})
        inputs["judge_weights"] = served[1].digest
        packages += (SERVER_PACKAGE,)
    return Identity(stage="judge", checkpoint=checkpoint, settings=settings, inputs=inputs, packages=packages)
