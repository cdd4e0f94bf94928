"""Processor time of parsing each DAG, beside importing the Airflow modules that it needs, each in a process of its own.

python -m benchmarks.parse [DAG ...]     in the environment `airflow`
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

DAGS = Path(__file__).parents[1] / "dags"
TRIES = 3
PARSE = """
import json, runpy, sys, time
runpy.run_path(sys.argv[1])
print(json.dumps([time.process_time(), [name for name in sys.modules if name.split(".")[0] == "airflow"]]))
"""
BARE = """
import importlib, json, sys, time
from contextlib import suppress
for name in json.loads(sys.argv[1]):
    with suppress(ImportError):  # aliases that Airflow adds while it starts
        importlib.import_module(name)
print(json.dumps([time.process_time(), []]))
"""


def measure(code: str, argument: str) -> tuple[float, list[str]]:
    """Run ``code``; return the fewest seconds of processor time of some tries, and the modules that it names."""
    words = [sys.executable, "-c", code, argument]
    done = [subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout for _ in range(TRIES)]
    found = [json.loads(output.splitlines()[-1]) for output in done]
    return min(seconds for seconds, _ in found), found[0][1]


def main(names: list[str]) -> None:
    """Measure the DAGs of these names, or all, and print them."""
    print("| DAG | parse | its Airflow imports | ratio |")
    print("| --- | --- | --- | --- |")
    for path in sorted(DAGS.glob("*.py")):
        if not names or path.stem in names:
            parse, modules = measure(PARSE, str(path))
            bare, _ = measure(BARE, json.dumps(modules))
            print(f"| {path.stem} | {parse:.2f} s | {bare:.2f} s | {parse / bare:.2f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
