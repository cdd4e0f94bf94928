"""Time, memory, bytes and requests of the report of 2,000 checkpoints and 12 tasks.

python -m benchmarks.report [CHECKPOINTS]     without a browser only what is written is measured

The store is ``s3://`` on this machine. An evaluation is one `summarize` with the pages; the table alone is beside it.
The time of a browser is from the start of navigation until the table is drawn; beside it is a table of plain HTML with
the same scores, which neither sorts nor filters. The plugin answers in Airflow's own API server; beside it is that
server's smallest answer to a user, and the same file straight from the store.
"""

from __future__ import annotations

import csv
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from html import escape
from pathlib import Path
from statistics import median
from subprocess import DEVNULL

import httpx2

from benchmarks import store
from benchmarks.table import BUCKET, COUNTS, LATENCY, served
from halos_eval.reports.pages import write
from halos_eval.reports.pages.links import INDEX, checkpoint_page
from halos_eval.reports.summarize import SummarizeConfig, summarize
from halos_eval.reports.table import FACTS
from halos_eval.storage import filesystem, layout
from tests.airflow_server import ROOT, airflow_environment, free_port, wait_for

TRIES, ANSWERS = 3, 20
DRAWN = "new Promise(done => requestAnimationFrame(() => setTimeout(() => done(performance.now()))))"
CASES = {
    "all pages of a new report": "all",
    "one evaluation": "one",
    "one evaluation, the table alone": "table",
}


def measure(case: str) -> dict[str, float]:
    """Run one case in this process. Return seconds, processor seconds, requests and the most memory in MB."""
    requests = Path(os.environ[COUNTS])
    requests.write_bytes(b"")
    if case == "table":
        write.installed = lambda: False
    one = {} if case == "all" else {"checkpoint": store.reference(7).name}
    began, used = time.perf_counter(), time.process_time()
    summarize(SummarizeConfig(root=BUCKET, suite=store.SUITE, output=layout.report_url(BUCKET, store.SUITE), **one))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds, used = time.perf_counter() - began, time.process_time() - used
    return {"seconds": seconds, "processor": used, "requests": requests.stat().st_size, "memory": memory}


def first_view(page: Path) -> tuple[float, float] | None:
    """Return seconds and seconds of processor time until Chromium has drawn the table, the best of some tries.

    None without a browser.
    """
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        return None
    from playwright.sync_api import sync_playwright

    took = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for _ in range(TRIES):
            tab = browser.new_page()
            metrics = tab.context.new_cdp_session(tab)
            metrics.send("Performance.enable")
            tab.goto(page.as_uri())
            tab.wait_for_selector("table tbody tr")
            seconds = float(tab.evaluate(DRAWN)) / 1000
            found = {one["name"]: one["value"] for one in metrics.send("Performance.getMetrics")["metrics"]}
            took.append((seconds, float(found["ProcessTime"])))
            tab.close()
        browser.close()
    return min(took)


def plain_page(folder: Path, table: Path) -> Path:
    """Write the scores as plain HTML, to see what a browser needs for these alone."""
    with table.open(encoding="utf-8", newline="") as file:
        rows = [[cell for name, cell in row.items() if name not in FACTS] for row in csv.DictReader(file)]
    text = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    path = folder / "plain.html"
    path.write_text(f"<!DOCTYPE html><meta charset=utf-8><table><tbody>{text}</tbody></table>", encoding="utf-8")
    return path


@contextmanager
def airflow(folder: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """Give the URL of an API server with the plugin, in which everybody is administrator."""
    port, program = free_port(), ROOT / ".venv" / "airflow" / "bin" / "airflow"
    own = airflow_environment(
        ROOT / ".venv", folder, port, AIRFLOW__CORE__PLUGINS_FOLDER=str(ROOT / "plugins"), AIRFLOW__API__WORKERS="1",
        HALOS_EVAL_STORE=BUCKET, **{name: value for name, value in environment.items() if name.startswith("AWS_")},
    )  # fmt: skip
    subprocess.run([program, "db", "migrate"], env=own, check=True, capture_output=True)
    with subprocess.Popen([program, "api-server"], env=own, stdout=DEVNULL, stderr=DEVNULL) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(lambda: _is_up(url), 180)
            yield url
        finally:
            process.terminate()


def _is_up(url: str) -> bool:
    with suppress(httpx2.TransportError):
        return httpx2.get(f"{url}/api/v2/version").is_success
    return False


def answer(client: httpx2.Client, path: str) -> tuple[float, int, int]:
    """Return the median of seconds until a user has the whole answer, its bytes, and those that were sent."""
    took = []
    for _ in range(ANSWERS):
        began = time.perf_counter()
        reply = client.get(path).raise_for_status()
        took.append(time.perf_counter() - began)
    return median(took), len(reply.content), reply.num_bytes_downloaded


def measure_plugin(folder: Path, environment: Mapping[str, str]) -> None:
    """Print how long the plugin takes, beside the server's smallest answer and the bare read from the store."""
    page = filesystem.join(layout.report_folder(BUCKET, store.SUITE), INDEX)
    os.environ.update(environment)
    bare = []
    for _ in range(ANSWERS):
        began = time.perf_counter()
        filesystem.read_bytes(page)
        bare.append(time.perf_counter() - began)
    with airflow(folder, environment) as url:
        token = httpx2.get(f"{url}/auth/token").raise_for_status().json()["access_token"]
        client = httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=60)
        cases = {
            "leaderboard": f"/halos-eval/{store.SUITE}/{INDEX}",
            "one checkpoint": f"/halos-eval/{store.SUITE}/{checkpoint_page(store.reference(7).name)}",
            "Airflow's smallest answer to a user": "/ui/auth/me",
        }
        print("| request | median | bytes | sent |")
        print("| --- | --- | --- | --- |")
        for title, path in cases.items():
            seconds, size, sent = answer(client, path)
            print(f"| {title} | {1000 * seconds:.0f} ms | {size:,} | {sent:,} |", flush=True)
    print(f"| the leaderboard straight from the store | {1000 * median(bare):.0f} ms | | |")


def main(checkpoints: int) -> None:
    """Make the results, measure all cases and print them."""
    folder = Path(tempfile.mkdtemp(prefix="bench-report-"))
    try:
        store.make(folder, checkpoints, BUCKET)
        with served(folder / "store") as environment:
            print(f"{checkpoints} checkpoints x {len(store.TASKS)} tasks")
            print("| case | time | processor time | requests | memory |")
            print("| --- | --- | --- | --- | --- |")
            environment |= {LATENCY: "0", COUNTS: str(folder / "requests")}
            for title, case in CASES.items():
                words = [sys.executable, "-m", "benchmarks.report", "case", case]
                done = subprocess.run(words, env=os.environ | environment, stdout=subprocess.PIPE, check=True)
                one = json.loads(done.stdout.splitlines()[-1])
                cells = [f"{one['seconds']:.2f} s", f"{one['processor']:.2f} s", f"{one['requests']:.0f}"]
                print("|", " | ".join([title, *cells, f"{one['memory']:.0f} MB"]), "|", flush=True)
            measure_plugin(folder, environment)
        report = folder / "store" / "bucket" / "reports" / store.SUITE
        sizes = {page: (report / page).stat().st_size for page in ("index.html", "charts.html")}
        print(", ".join(f"{page}: {size / 1e6:.2f} MB" for page, size in sizes.items()))
        pages = {"first view": report / INDEX, "plain table": plain_page(folder, report / "summary.csv")}
        for title, page in pages.items():
            drawn = first_view(page)
            if drawn is None:
                print("no Chromium here")
                break
            print(f"{title} in Chromium: {drawn[0]:.2f} s, {drawn[1]:.2f} s of processor time, 1 request")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    if sys.argv[1:2] == ["case"]:
        print(json.dumps(measure(sys.argv[2])))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
