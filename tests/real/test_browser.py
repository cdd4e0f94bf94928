"""The pages in headless Chromium, opened from a disk: they sort, filter, are small, and everybody can use them."""

from __future__ import annotations

import os

import pytest
from axe_playwright_python.sync_playwright import Axe

from halos_eval.reports.comparison import Comparison, Flip, TaskComparison, Verdict, write_comparison
from halos_eval.reports.pages.write import overview, write_checkpoints
from tests.browser import chromium
from tests.reports.pages.material import SUITE, row
from tests.reports.pages.test_write import document, harness

pytestmark = pytest.mark.real

MOST = 2_000_000  # bytes of the first view
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 800}


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The folder of a report with 40 checkpoints, samples of one and a comparison."""
    root = tmp_path_factory.mktemp("report")
    rows = [row(number) for number in range(40)]
    folder = root / "reports" / SUITE
    folder.mkdir(parents=True)
    for path, content in overview(SUITE, rows).items():
        (folder / path).write_bytes(content)
    sampled = harness(root, [document(at, at % 3) for at in range(9)], rows[1].checkpoint)
    task = TaskComparison(
        task="task_01", metric="acc", n=500, a=0.4, b=0.5, difference=-0.1, low=-0.14, high=-0.06, p=0.0001,
        p_holm=0.001, detectable=0.05, test="McNemar", verdict=Verdict.WORSE, better=("3",), worse=("7", "9"),
    )  # fmt: skip
    flip = Flip(task="task_01", id="7", a=0, b=1, prompt="2 + 2 =", reference="4", answer_a="5", answer_b="4")
    names = {"a": rows[1].checkpoint, "b": rows[2].checkpoint}
    compared = Comparison(**names, suite=SUITE, margin=0.01, verdict=Verdict.WORSE, tasks=(task,), flips=(flip,))
    write_comparison(str(root), compared)
    write_checkpoints(str(root), SUITE, [row(1, samples=sampled.samples)])
    return folder


def opened(browser, path, **options):
    """A page of the report, and the messages of its console, in which the browser reports what a policy forbids."""
    page = browser.new_context(**{"viewport": DESK, **options}).new_page()
    page.messages = []
    page.on("console", lambda message: page.messages.append(message.text))
    page.on("pageerror", lambda error: page.messages.append(str(error)))
    page.goto(path.as_uri())
    if path.name == "index.html":
        page.wait_for_selector("html[data-ready]")
    return page


def names(page):
    return page.locator("tbody td.name").all_inner_texts()


def all_pages(report):
    """One page of each kind."""
    kinds = ["index.html", "charts.html", "checkpoints/*.html", "samples/*/*.html", "pairs/*/*.html"]
    return [next(iter(sorted(report.glob(kind)))) for kind in kinds]


def test_it_filters_by_name_tag_and_date(browser, report):
    page = opened(browser, report / "index.html")
    page.fill("#tag", "method=kto")
    assert names(page)
    assert all("-kto-" in name for name in names(page))
    page.fill("#name", "0004")
    assert names(page) == ["llama3-8b-kto-0004"]
    page.fill("#name", "")
    page.fill("#tag", "")
    page.fill("#from", "2026-01-11")
    assert set(names(page)) == {"llama3-8b-kto-0036", "llama3-8b-dpo-0037", "llama3-8b-sft-0038"}
    assert page.messages == []


def test_series_are_never_mixed(browser, report):
    page = opened(browser, report / "index.html")
    assert not any(name.endswith("9") for name in names(page))
    page.select_option("#series", "1")
    assert len(names(page)) == 4
    assert all(name.endswith("9") for name in names(page))


def test_it_sorts_by_a_score(browser, report):
    page = opened(browser, report / "index.html")
    header = page.locator("th", has_text="alpacaeval_lcwr").first
    header.click()
    page.wait_for_selector("th[aria-sort=ascending]")
    shown = [float(text) for text in page.locator("tbody td:nth-child(6) b").all_inner_texts()]
    assert shown == sorted(shown)
    header.click()
    page.wait_for_selector("th[aria-sort=descending]")
    shown = [float(text) for text in page.locator("tbody td:nth-child(6) b").all_inner_texts()]
    assert shown == sorted(shown, reverse=True)


def test_a_missing_score_tells_its_reason(browser, report):
    page = opened(browser, report / "index.html")
    page.fill("#name", "0003")
    page.locator("td.number details summary").first.click()
    assert "OutOfMemory: the pod was killed" in page.locator("td.number details").first.inner_text()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_axe_finds_nothing_serious(browser, report, theme, viewport):
    for path in all_pages(report):
        page = opened(browser, path, color_scheme=theme, viewport=viewport, bypass_csp=True)  # axe is a script
        found = Axe().run(page).response["violations"]
        serious = [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in {"serious", "critical"}]
        assert (path.name, serious) == (path.name, [])


def test_pages_are_not_wider_than_a_phone(browser, report):
    for path in all_pages(report):
        page = opened(browser, path, viewport=PHONE)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], path
        assert page.messages == [], path


def test_the_keyboard_reaches_filters_and_table(browser, report):
    page = opened(browser, report / "index.html")
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.closest('table')?.id || ''"))
    assert {"name", "tag", "from", "series", "table"} <= set(reached)


def test_a_script_in_the_data_is_not_executed(browser, tmp_path):
    attack = "<img src=x onerror=\"document.title='attacked'\"></script><script>document.title='attacked'</script>"
    rows = [row(3, tags={"method": attack}, warnings=(attack,)), row(4, tags={"method": attack})]
    for path, content in overview(SUITE, rows).items():
        (tmp_path / path).write_bytes(content)
        page = opened(browser, tmp_path / path)
        page.wait_for_timeout(100)
        assert page.title() != "attacked"
        assert page.locator("img").count() == 0


def test_the_first_view_of_a_large_report_is_small(tmp_path):
    content = overview(SUITE, [row(number) for number in range(2000)])["index.html"]
    assert len(content) < MOST


def test_screenshots(browser, report):
    """What a person looks at; with HALOS_EVAL_SCREENSHOTS=FOLDER they are written there."""
    folder = os.environ.get("HALOS_EVAL_SCREENSHOTS")
    for path, kind in zip(all_pages(report), ["leaderboard", "charts", "checkpoint", "samples", "pair"], strict=True):
        for theme, viewport in (("light", DESK), ("dark", PHONE)):
            page = opened(browser, path, color_scheme=theme, viewport=viewport)
            data = page.screenshot()
            # Something is drawn: an empty page of one color compresses to less.
            assert len(data) > 10_000
            if folder:
                with open(f"{folder}/{kind}-{theme}.png", "wb") as file:  # noqa: PTH123
                    file.write(data)
