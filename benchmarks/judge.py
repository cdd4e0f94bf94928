"""Time of the judge's stage, beside alpaca_eval's own command and a client that only sends the requests.

python -m benchmarks.judge [PAIRS] [LATENCY]     LATENCY of an answer, in milliseconds

The double of a judge runs on this machine. Each case is a process of its own, timed from its start to its end. The
judge is that of AlpacaEval 2; length control is left out, because it needs a file of the hub.
"""

from __future__ import annotations

import asyncio
import csv
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

PAIRS, LATENCY = 805, 200
CONCURRENCY = 64
JUDGE = "weighted_alpaca_eval_gpt4_turbo"
IMPORT, BARE, OURS = "import alpaca_eval", f"bare client, {CONCURRENCY} at a time", "halos-eval judge"
THEIRS = {5: "alpaca_eval, 5 at a time (its default)", CONCURRENCY: f"alpaca_eval, {CONCURRENCY} at a time"}


class Measured(NamedTuple):
    """What one process took: seconds, and seconds of the processor."""

    seconds: float
    processor: float


def write_pairs(folder: Path, pairs: int) -> None:
    """Write made outputs and references, as long as those of AlpacaEval."""
    dice = random.Random(0)  # noqa: S311 (no secret)
    words = ["answer", "because", "the", "list", "water", "quickly", "and", "model", "of", "night", "seven", "write"]
    for name, mean in {"outputs": 250, "reference": 350}.items():
        rows = [
            {
                "instruction": f"Task {number}: " + " ".join(words[(number + at) % len(words)] for at in range(30)),
                "output": " ".join(dice.choices(words, k=dice.randint(20, 2 * mean))),
                "generator": name,
            }
            for number in range(pairs)
        ]
        (folder / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")


async def send_all(folder: Path) -> None:
    """Send a request for each pair, as a program would that does nothing else."""
    import aiohttp

    outputs, references = (json.loads((folder / f"{name}.json").read_bytes()) for name in ("outputs", "reference"))
    slots = asyncio.Semaphore(CONCURRENCY)
    async with aiohttp.ClientSession() as session:

        async def send(mine: dict[str, Any], other: dict[str, Any]) -> None:
            content = "\n".join((mine["instruction"], mine["output"], other["output"]))
            body = {"model": "any", "messages": [{"role": "user", "content": content}], "logprobs": True}
            url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
            async with slots, session.post(url, json=body) as reply:
                await reply.json()

        await asyncio.gather(*map(send, outputs, references))


def measure(words: list[Any], environment: dict[str, str], log: Path) -> Measured:
    """Run a command to its end. Raise SystemExit with its log if it fails."""
    began, used = time.perf_counter(), _children()
    with log.open("w") as file:
        code = subprocess.run(words, env=environment, stdout=file, stderr=file, check=False).returncode
    if code:
        raise SystemExit(f"{words} failed:\n{log.read_text()[-3000:]}")
    return Measured(time.perf_counter() - began, _children() - used)


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure_all(folder: Path, url: str) -> tuple[dict[str, Measured], dict[str, float]]:
    """Return what each case took, and the win rates."""
    environment = os.environ | {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "any", "HF_HUB_OFFLINE": "1"}
    programs, python = Path(sys.executable).parent, [sys.executable, "-W", "ignore"]
    outputs, reference, log = folder / "outputs.json", folder / "reference.json", folder / "log"
    words = [programs / "halos-eval", "judge", outputs, f"--reference={reference}", f"--judge={JUDGE}"]
    words += [f"--concurrency={CONCURRENCY}"]
    measure([*words, f"--output-dir={folder / 'first'}"], environment, log)  # reads and compiles what all cases import
    found = {IMPORT: measure([*python, "-c", "import alpaca_eval"], environment, log)}
    found[BARE] = measure([*python, "-m", "benchmarks.judge", "bare", folder], environment, log)
    found[OURS] = measure([*words, f"--output-dir={folder / 'ours'}"], environment, log)
    scores = json.loads((folder / "ours" / "record.json").read_bytes())["scores"]
    rates = {OURS: next(one["value"] for one in scores if one["metric"] == "win_rate")}
    for number, title in THEIRS.items():
        (folder / str(number)).mkdir()
        words = [programs / "alpaca_eval", "evaluate", f"--model_outputs={outputs}", f"--reference_outputs={reference}"]
        words += [f"--annotators_config={JUDGE}", f"--output_path={folder / str(number)}", "--fn_metric=get_winrate"]
        words += ["--sort_by=win_rate", "--precomputed_leaderboard=None", "--is_cache_leaderboard=False"]
        words += ["--caching_path=None"]
        found[title] = measure(words, environment | {"OPENAI_MAX_CONCURRENCY": str(number)}, log)
        (board,) = (folder / str(number)).rglob("leaderboard.csv")
        with board.open(encoding="utf-8") as file:
            rates[title] = float(next(csv.DictReader(file))["win_rate"])
    return found, rates


def main(pairs: int, latency: float) -> None:
    """Measure all cases and print them."""
    with tempfile.TemporaryDirectory(prefix="bench-judge-") as name:
        folder = Path(name)
        write_pairs(folder, pairs)
        words = [sys.executable, "-m", "benchmarks.judge_double", str(latency)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as double:
            try:
                found, rates = measure_all(folder, next(double.stdout or iter(())).strip())
            finally:
                double.terminate()
    print(f"{pairs} pairs, {1000 * latency:.0f} ms for each answer")
    print("| case | time | processor time | time / bare client | win rate |")
    print("| --- | --- | --- | --- | --- |")
    bare = found[BARE].seconds
    limit = latency * pairs / CONCURRENCY
    print(f"| limit: latency x pairs / {CONCURRENCY} | {limit:.2f} s | - | {limit / bare:.2f} | - |")
    for title, one in found.items():
        rate = f"{rates[title]:.12f}" if title in rates else "-"
        print(f"| {title} | {one.seconds:.2f} s | {one.processor:.2f} s | {one.seconds / bare:.2f} | {rate} |")
    more = (found[OURS].seconds - found[IMPORT].seconds) / bare
    print(f"{OURS} without one import of alpaca_eval: {more:.2f} times the bare client")
    if len(set(rates.values())) > 1:
        raise SystemExit("the win rates differ")


if __name__ == "__main__":
    if sys.argv[1:2] == ["bare"]:
        asyncio.run(send_all(Path(sys.argv[2])))
    else:
        numbers = [float(word) for word in sys.argv[1:]] + [PAIRS, LATENCY][len(sys.argv) - 1 :]
        main(int(numbers[0]), numbers[1] / 1000)
