"""Time, memory, bytes and requests of the report of 2,000 checkpoints and 12 tasks.

python -m benchmarks.report [CHECKPOINTS]     without a browser only what is written is measured

The store is ``s3://`` on this machine. An evaluation is one `summarize` with the pages; the table alone is beside it.
The time of a browser is from the start of navigation until the table is drawn.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import store
from benchmarks.table import BUCKET, _delay, served
from halos_eval.reports.pages import write
from halos_eval.reports.summarize import SummarizeConfig, summarize
from halos_eval.storage import layout

CASES = {
    "all pages of a new report": "all",
    "one evaluation": "one",
    "one evaluation, the table alone": "table",
}


def measure(case: str) -> dict[str, float]:
    """Run one case in this process. Return seconds, processor seconds, requests and the most memory in MB."""
    requests = [0]
    _delay(requests, 0.0)
    if case == "table":
        write.installed = lambda: False
    one = {} if case == "all" else {"checkpoint": store.reference(7).name}
    began, used = time.perf_counter(), time.process_time()
    summarize(SummarizeConfig(root=BUCKET, suite=store.SUITE, output=layout.report_url(BUCKET, store.SUITE), **one))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds, used = time.perf_counter() - began, time.process_time() - used
    return {"seconds": seconds, "processor": used, "requests": requests[0], "memory": memory}


def first_view(page: Path) -> float | None:
    """Return the seconds until Chromium has drawn the table, the best of three; None without a browser."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        return None
    from playwright.sync_api import sync_playwright

    took = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for _ in range(3):
            tab = browser.new_page()
            tab.goto(page.as_uri())
            tab.wait_for_selector("html[data-ready]")
            took.append(float(tab.evaluate("performance.now()")) / 1000)
        browser.close()
    return min(took)


def main(checkpoints: int) -> None:
    """Make the results, measure all cases and print them."""
    folder = Path(tempfile.mkdtemp(prefix="bench-report-"))
    try:
        store.make(folder, checkpoints, BUCKET)
        with served(folder / "store") as environment:
            print(f"{checkpoints} checkpoints x {len(store.TASKS)} tasks")
            print("| case | time | processor time | requests | memory |")
            print("| --- | --- | --- | --- | --- |")
            for title, case in CASES.items():
                words = [sys.executable, "-m", "benchmarks.report", "case", case]
                done = subprocess.run(words, env=os.environ | environment, stdout=subprocess.PIPE, check=True)
                one = json.loads(done.stdout.splitlines()[-1])
                cells = [f"{one['seconds']:.2f} s", f"{one['processor']:.2f} s", f"{one['requests']:.0f}"]
                print("|", " | ".join([title, *cells, f"{one['memory']:.0f} MB"]), "|", flush=True)
        report = folder / "store" / "bucket" / "reports" / store.SUITE
        sizes = {page: (report / page).stat().st_size for page in ("index.html", "charts.html")}
        print(", ".join(f"{page}: {size / 1e6:.2f} MB" for page, size in sizes.items()))
        seconds = first_view(report / "index.html")
        print("no Chromium here" if seconds is None else f"first view in Chromium: {seconds:.2f} s")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    if sys.argv[1:2] == ["case"]:
        print(json.dumps(measure(sys.argv[2])))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
