"""The command line ``halos-eval COMMAND``, the entry point of every pod. Only this module exits."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_settings import CliApp, CliSubCommand, SettingsError, get_subcommand

from halos_eval.cli.commands import CheckpointsConfig, PlanConfig, PoolsConfig, checkpoints, plan
from halos_eval.cli.compare import CompareConfig, compare_checkpoints
from halos_eval.cli.doctor import DoctorConfig, doctor
from halos_eval.cli.export import ExportConfig, export
from halos_eval.cli.judges import JudgesConfig, judges
from halos_eval.cli.prompt import PromptConfig, prompt
from halos_eval.cli.prune import PruneConfig, prune
from halos_eval.cli.show import show_manifest, show_record
from halos_eval.config.cluster import load_cluster
from halos_eval.config.settings import FROZEN
from halos_eval.errors import BadInput, HalosEvalError
from halos_eval.processes import NO_REPORTS
from halos_eval.reports.summarize import SummarizeConfig, summarize
from halos_eval.reports.terminal import PlainConsole, Summary, plain
from halos_eval.stages.fetch import FetchConfig, fetch
from halos_eval.stages.harness.options import HarnessConfig, ScoreConfig
from halos_eval.stages.harness.score import score
from halos_eval.stages.harness.stage import harness
from halos_eval.stages.judge.options import JudgeConfig
from halos_eval.stages.judge.stage import judge
from halos_eval.stages.pack import PackConfig, pack
from halos_eval.stages.sample import SampleConfig, sample
from halos_eval.stages.serve import ServeConfig, serve
from halos_eval.untrusted import HALF


class HalosEval(BaseModel):
    """Evaluate aligned language models: AlpacaEval and lm-evaluation-harness.

    Exit codes: 0 success, 1 bug, 2 bad input, 3 data unavailable, 4 rejected by the judge's endpoint, 5 incomplete (run
    it again), 6 store unusable, 7 no result of the evaluation tool, 8 stopped at the cost limit, 9 waiting for a batch
    (run it again later), 20 to 23 verdicts of `compare`, 130 or 143 interrupted (run it again).
    """

    model_config = FROZEN

    fetch: CliSubCommand[FetchConfig]
    """Fetch and pin the data that a suite needs, so that the other stages run without the hub."""
    sample: CliSubCommand[SampleConfig]
    """Sample answers to prompts with vLLM."""
    judge: CliSubCommand[JudgeConfig]
    """Let an LLM judge compare sampled answers with a reference (AlpacaEval)."""
    serve: CliSubCommand[ServeConfig]
    """Serve a model with vLLM as a judge."""
    harness: CliSubCommand[HarnessConfig]
    """Run one task of lm-evaluation-harness."""
    score: CliSubCommand[ScoreConfig]
    """Score answers of a task that executes model-written code."""
    pack: CliSubCommand[PackConfig]
    """Run several sample and harness stages on one load of the model."""
    summarize: CliSubCommand[SummarizeConfig]
    """Write one row for each checkpoint as CSV."""
    plan: CliSubCommand[PlanConfig]
    """Print the jobs of a suite on a checkpoint, and the reasons."""
    prompt: CliSubCommand[PromptConfig]
    """Print the token ids, the text and the stop strings that a stage sends to a model."""
    judges: CliSubCommand[JudgesConfig]
    """Compare two judges over the checkpoints that both have judged, before one replaces the other."""
    compare: CliSubCommand[CompareConfig]
    """Say whether one checkpoint is better than another, and in which tasks. The exit code is the verdict."""
    export: CliSubCommand[ExportConfig]
    """Write results in the schema of Every Eval Ever, for other programs."""
    checkpoints: CliSubCommand[CheckpointsConfig]
    """List the registered checkpoints, and the progress of each suite."""
    pools: CliSubCommand[PoolsConfig]
    """Print the pools of the cluster file, for `airflow pools import`."""
    doctor: CliSubCommand[DoctorConfig]
    """Check what the stages need, and print the remedy for whatever is missing."""
    prune: CliSubCommand[PruneConfig]
    """List or remove results of old definitions, and journals and claims of ended runs."""


PRINTING: dict[type[object], Callable[[Any], int | None]] = {
    PlanConfig: plan,
    CompareConfig: compare_checkpoints,
    ExportConfig: export,
    PromptConfig: prompt,
    JudgesConfig: judges,
    CheckpointsConfig: checkpoints,
    DoctorConfig: doctor,
    PruneConfig: prune,
    ServeConfig: serve,
    PackConfig: pack,
}
"""Commands that print by themselves; one of them returns an exit code."""


def main() -> None:
    """Run the command of ``sys.argv`` and exit."""
    # A library ends its forked workers with SIGTERM (lm_eval's bootstrap). A handler in Python runs between two
    # instructions only: a worker that has just begun to wait for a lock would wait for ever, and this process for it.
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    os.environ.update(NO_REPORTS)
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    """Run one command and return its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for name in ("httpx2", "huggingface_hub"):  # they log each of AlpacaEval's 805 requests
        logging.getLogger(name).setLevel(logging.WARNING)
    # Kubernetes and Airflow end a process with SIGTERM. Raise, so that finished work is saved.
    signal.signal(signal.SIGTERM, _terminate)
    try:
        if wrong := [word for word in argv if HALF.search(word)]:
            raise BadInput(f"the argument {wrong[0]!r} is not valid UTF-8. Rename what it names")
        command = get_subcommand(CliApp.run(HalosEval, cli_args=argv or ["--help"]), cli_exit_on_error=False)
        return _dispatch(command)
    except ValidationError as error:
        return _fail(BadInput("; ".join(_problem(one) for one in error.errors())))
    except SettingsError as error:
        return _fail(BadInput(f"{error}; see --help"))
    except HalosEvalError as error:
        return _fail(error)
    except KeyboardInterrupt:
        print("halos-eval: interrupted. Run it again; finished work is kept", file=sys.stderr)
        return 130


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _fail(error: HalosEvalError) -> int:
    message = plain(" ".join(str(error).split()))  # one line, even if a library's message has several
    print(f"halos-eval: {type(error).__name__}: {message}", file=sys.stderr)
    return error.exit_code


def _problem(one: Any) -> str:
    option = "-".join(str(part) for part in one["loc"] if part not in HalosEval.model_fields).replace("_", "-")
    return f"--{option}: {one['msg']}" if option else str(one["msg"])


def _dispatch(command: object) -> int:
    """Run a command and return its exit code."""
    match command:
        case FetchConfig():
            show_manifest(fetch(command))
            print(f"manifest: {command.manifest}")
        case SampleConfig():
            show_record(sample(command))
        case JudgeConfig():
            show_record(judge(command))
        case HarnessConfig():
            show_record(harness(command))
        case ScoreConfig():
            show_record(score(command))
        case SummarizeConfig():
            PlainConsole().print(Summary(summarize(command), command.output))
            print(f"summary: {command.output}")
        case PoolsConfig():
            print(json.dumps(load_cluster().pools.document(), indent=2))
        case _:
            return PRINTING[type(command)](command) or 0
    return 0


if __name__ == "__main__":
    main()
