"""The docs name files that exist, link to pages and headings that exist, and the README stays short."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.check_words import complaints

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!\w+:)(?P<path>[^)#\s]*)(?:#(?P<heading>[^)\s]*))?\)")
# At least a package and a module: halos_eval.yaml is a file, and halos_eval.stop is a tag in MLflow.
MODULE = re.compile(r"(?<![\w/.])halos_eval(?:\.[a-z_]+){2,}(?![\w(])")
# A path of the repository: its first folder is one of those that git knows.
FOLDERS = {path.partition("/")[0] for path in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).split()}
PATH = re.compile(rf"(?<![\w/.$-])(?:{'|'.join(map(re.escape, sorted(FOLDERS)))})/[\w./*-]*[\w*/]")
README_LINES = 150
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def slugs(text):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def paths_in(page):
    """Paths of the repository that a page names; in code blocks, too."""
    return set(PATH.findall(page.read_text(encoding="utf-8")))


@each_page
def test_links(page):
    broken = []
    for found in LINK.finditer(page.read_text(encoding="utf-8")):
        target = page.parent / found["path"] if found["path"] else page
        heading = found["heading"]
        if not target.exists() or (heading and heading not in slugs(target.read_text(encoding="utf-8"))):
            broken.append(found[0])
    assert broken == []


@each_page
def test_paths(page):
    missing = [path for path in paths_in(page) if not path.startswith("halos_eval/") and not list(ROOT.glob(path))]
    assert missing == []


@each_page
def test_the_package_is_laid_out_as_the_docs_say(page):
    """Modules (halos_eval.planning.plan) and folders (halos_eval/shipped/suites/) of the package."""
    modules = {name.replace(".", "/") for name in MODULE.findall(page.read_text(encoding="utf-8"))}
    missing = [name for name in modules if not (ROOT / f"{name}.py").is_file() and not (ROOT / name).is_dir()]
    missing += [path for path in paths_in(page) if path.startswith("halos_eval/") and not list(ROOT.glob(path))]
    assert sorted(missing) == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES


def test_every_page_can_be_found():
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    linked = {Path(found["path"]).name for found in LINK.finditer((ROOT / "README.md").read_text(encoding="utf-8"))}
    assert pages - linked == set()


@each_page
def test_words(page):
    assert list(complaints(page.name, page.read_text(encoding="utf-8"))) == []
