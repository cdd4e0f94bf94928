"""GPU time of the shipped suites at assumed speeds, by the planner's own code; nothing is measured.

python -m benchmarks.gpu_assumed
"""

from __future__ import annotations

from typing import NamedTuple

from halos_eval.checkpoints.registry import Checkpoint
from halos_eval.config.cluster import DEFAULT_PROFILE
from halos_eval.config.suite import Suite, load_suite
from halos_eval.planning.costs import History
from halos_eval.planning.expected import SAMPLE, Expected, candidates_of, packing_of, work_of
from halos_eval.planning.packing import Candidate

SUITES = ("halos", "quick")
CHECKPOINT = Checkpoint(name="assumed", location="/assumed")
TOKENS = {"loglikelihood": 250, "generate": 300}
"""Tokens of a request that count: of the text whose log-likelihood is computed, or of an answer."""
WAYS = ("a pod for each task", "packed", "one process for all")


class Assumed(NamedTuple):
    """A model on GPUs, with all that the table assumes of them."""

    title: str
    gpus: int
    load: float
    """Seconds for imports and weights."""
    compiling: float
    """Seconds to compile, or to read compiled code, and to capture CUDA graphs."""
    prompts: int
    """Tokens a second of texts that are read."""
    answers: int
    """Tokens a second of answers."""

    def __str__(self) -> str:
        return (
            f"{self.title}: {self.load:.0f} s of imports and weights, {self.compiling:.0f} s of compiling, "
            f"{self.prompts} tokens a second of prompts, {self.answers} of answers"
        )

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of one request of each kind, with a full batch."""
        return {"loglikelihood": TOKENS["loglikelihood"] / self.prompts, "generate": TOKENS["generate"] / self.answers}

    def expected(self, suite: Suite) -> Expected:
        """Return what the stages of ``suite`` are expected to take."""
        settings = {part: suite.settings_of(part) for part in suite.parts}
        found = {part: work_of(part, one, self.seconds) for part, one in settings.items()}
        work = {(SAMPLE if part not in suite.tasks else part, DEFAULT_PROFILE): one for part, one in found.items()}
        return Expected(
            {key: one for key, one in work.items() if one is not None},
            {DEFAULT_PROFILE: self.load + self.compiling},
        )


ASSUMED = (
    Assumed("8B in bfloat16 on one H100, nothing compiled yet", 1, 40, 140, 16_000, 3_000),
    Assumed("8B in bfloat16 on one H100, compiled code kept on a volume", 1, 40, 20, 16_000, 3_000),
    Assumed("70B in bfloat16 on four H100, nothing compiled yet", 4, 150, 200, 8_000, 1_500),
)


class Total(NamedTuple):
    """What one way to run a suite takes."""

    pods: int
    load: float
    """Seconds of loading, of all pods."""
    work: float
    """Seconds of work, of all pods."""
    longest: float
    """Seconds of the longest pod: of the suite, with enough GPUs."""
    gpu_hours: float
    """The planner's estimate."""

    @property
    def share(self) -> float:
        """Share of loading in the time of all pods."""
        return self.load / (self.load + self.work)


def totals(suite: Suite, assumed: Assumed) -> dict[str, Total]:
    """Return what each way to run ``suite`` takes."""
    expected = assumed.expected(suite)
    stages = {one.title: one for one in candidates_of(suite, CHECKPOINT, expected)}
    apart, packed = (suite.model_copy(update={"packing": packing}) for packing in ("none", "auto"))
    shared = packing_of(packed, CHECKPOINT, stages, expected)
    pods = [*shared.packs, *((title,) for title in stages if shared.pack_of(title) is None)]
    costs = {one.packing: _gpu_hours(one, stages, expected, assumed.gpus) for one in (apart, packed)}
    load, work = assumed.load + assumed.compiling, sum(one.work or 0 for one in stages.values())
    one_process = assumed.gpus * (load + work) / 3600
    return {
        WAYS[0]: _total([(title,) for title in stages], stages, costs["none"]),
        WAYS[1]: _total(pods, stages, costs["auto"]),
        WAYS[2]: _total([tuple(stages)], stages, one_process),
    }


def _total(pods: list[tuple[str, ...]], stages: dict[str, Candidate], gpu_hours: float) -> Total:
    work = [sum(stages[title].work or 0 for title in pod) for pod in pods]
    load = [max(stages[title].load for title in pod) for pod in pods]
    longest = max(sum(both) for both in zip(load, work, strict=True))
    return Total(len(pods), sum(load), sum(work), longest, gpu_hours)


def _gpu_hours(suite: Suite, stages: dict[str, Candidate], expected: Expected, gpus: int) -> float:
    """Return the planner's estimate for a suite whose stages have records with the ``expected`` seconds."""
    hours = {
        (title, DEFAULT_PROFILE): gpus * (one.load + one.work) / 3600
        for title, one in stages.items()
        if one.work is not None
    }
    history = History(hours, {}, expected, {DEFAULT_PROFILE: gpus})
    return history.of_suite(suite, CHECKPOINT, suite.parts).gpu_hours


def main() -> None:
    """Print a table for each assumption."""
    scored, answer = TOKENS.values()
    print(f"Assumed, not measured: a scored text has {scored} tokens, an answer {answer}.")
    for assumed in ASSUMED:
        print(f"\n{assumed}")
        print("| suite | way | pods | load | work | load / pod time | longest pod | GPU-hours / one process |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        for name in SUITES:
            found = totals(load_suite(name), assumed)
            for way, one in found.items():
                cells = [name, way, str(one.pods), f"{one.load / 60:.0f} min", f"{one.work / 60:.0f} min"]
                ratio = one.gpu_hours / found[WAYS[2]].gpu_hours
                cells += [f"{one.share:.0%}", f"{one.longest / 60:.0f} min", f"{ratio:.2f}"]
                print("|", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
