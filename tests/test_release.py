"""A release: one version everywhere, and the same bytes from the same commit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import helm_python
import pytest

from release import version
from tests.helm.release import scenario

ROOT = Path(__file__).parents[1]
IMAGES = ["airflow", "judge", "worker"]


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the files that name the version, and a changelog."""
    for path in version.places():
        there = tmp_path / path.relative_to(ROOT)
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, there)
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n- A change.\n")
    monkeypatch.setattr(version, "ROOT", tmp_path)
    return tmp_path


def test_every_file_has_the_version_of_the_package():
    assert version.others() == []
    texts = {
        path.name: path.read_text() for path, pattern in version.places().items() if pattern.search(path.read_text())
    }
    assert {"pyproject.toml", "Chart.yaml", "values.yaml", "gpu-values.yaml", "lab.yaml", "install-cluster.md"} <= set(
        texts
    )


@pytest.mark.parametrize("name", ["helm/halos-eval/Chart.yaml", "examples/lab.yaml", "docs/install-cluster.md"])
def test_another_version_is_found(copy, name):
    path = copy / name
    path.write_text(path.read_text().replace(version.version(), "9.9.9"))
    assert {f"{name}: 9.9.9"} == set(version.others())


def test_a_release_is_written_everywhere_and_ends_the_section_unreleased(copy):
    before = version.version()
    version.main("7.8.9")
    assert (version.version(), version.others()) == ("7.8.9", [])
    for path in version.places():
        assert not re.search(rf"halos-eval/\w+:{re.escape(before)}|halos_eval-{re.escape(before)}", path.read_text())
    changes = (copy / "CHANGELOG.md").read_text()
    assert re.fullmatch(r"# Changelog\n\n## Unreleased\n\n## 7\.8\.9 \(\d{4}-\d\d-\d\d\)\n\n- A change\.\n", changes)


def test_without_a_section_unreleased_nothing_is_written(copy):
    (copy / "CHANGELOG.md").write_text("# Changelog\n\n## 0.1.0 (2026-11-28)\n")
    before = version.version()
    with pytest.raises(SystemExit, match="nothing would be released"):
        version.main("7.8.9")
    assert (version.version(), version.others()) == (before, [])


@pytest.mark.parametrize("argument", ["", "1.2", "v1.2.3", "--help"])
def test_what_is_no_version(copy, argument):
    with pytest.raises(SystemExit, match="expected three numbers"):
        version.main(argument)


@pytest.fixture
def released(tmp_path):
    """The dist/ of two releases of the current commit, in two clones, the second by somebody with other settings."""
    uv = ROOT / ".venv" / "uv" / "bin" / "uv"
    if not uv.is_file() or not (ROOT / ".git").exists():
        pytest.skip("needs git's history and .venv/uv: `make release` makes them")
    folders = []
    other = {"umask": 0o077, "env": os.environ | {"LC_ALL": "en_US.UTF-8"}}
    for name, settings in (("one", {}), ("two", other)):
        clone = tmp_path / name / "halos-eval"
        subprocess.run(["git", "clone", "-q", "--no-hardlinks", ROOT, clone], check=True, **settings)
        if settings:
            subprocess.run(["git", "-C", clone, "config", "tar.umask", "0077"], check=True)
        subprocess.run(
            [clone / "release" / "build.sh", uv, sys.executable], check=True, capture_output=True, **settings
        )
        folders.append(clone / "dist")
    return folders


def test_a_release(released):
    """One test, because each process that runs some of several would build the releases again."""
    _same_bytes_twice(released)
    _packaged_chart(released[0])
    for image in IMAGES:
        _context(released[0], image)
    _wheel(released[0])


def _same_bytes_twice(released):
    one, two = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in released)
    number = version.version()
    assert one == two
    assert one.keys() == {
        f"halos_eval-{number}-py3-none-any.whl", f"halos-eval-{number}.tgz", "SHA256SUMS", "airflow-values.yaml",
        *(f"halos-eval-{image}-{number}-context.tar.gz" for image in IMAGES),
    }  # fmt: skip
    names = [line.split()[1] for line in one["SHA256SUMS"].decode().splitlines()]
    assert names == sorted(one.keys() - {"SHA256SUMS"})
    assert one["airflow-values.yaml"] == (released[0].parent / "helm" / "airflow-values.yaml").read_bytes()
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=released[0], check=True, capture_output=True)


def _packaged_chart(dist):
    package = dist / f"halos-eval-{version.version()}.tgz"
    assert helm_python.lint(package, scenario("minimal"), strict=True)["errors"] == []
    with helm_python.Chart.load_archive(package.read_bytes()) as chart:
        assert (chart.name, chart.version) == ("halos-eval", version.version())
        files = chart.render(scenario("minimal"), name="halos-eval", namespace="evaluation")
    with helm_python.Chart.load(ROOT / "helm" / "halos-eval") as chart:
        assert files == chart.render(scenario("minimal"), name="halos-eval", namespace="evaluation")


def _context(dist, image):
    with tarfile.open(dist / f"halos-eval-{image}-{version.version()}-context.tar.gz") as context:
        names = context.getnames()
        dockerfile = context.extractfile(f"images/{image}/Dockerfile").read().decode()
    copied = [word for line in re.findall(r"(?m)^COPY (?!--)(.*) \S+$", dockerfile) for word in line.split()]
    assert len(copied) > 3
    for word in copied:
        assert any(name == word or name.startswith(re.split(r"[$*]", word)[0]) for name in names), word
    assert names.count(f"images/{image}/Dockerfile") == 1
    assert not [name for name in names if ".git" in name or "__pycache__" in name or name.startswith("tests")]
    # What `make images` gives as arguments, so that `docker build` needs none.
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=dist, check=True, capture_output=True, text=True).stdout
    (uv,) = re.findall(r"(?m)^UV_VERSION := (.+)$", (dist.parent / "Makefile").read_text())
    defaults = {"UV_VERSION": uv, "VERSION": version.version(), "COMMIT": commit.strip()}
    assert not re.findall(r"(?m)^ARG \w+$", dockerfile)
    assert defaults.items() <= dict(re.findall(r"(?m)^ARG (\w+)=(.+)$", dockerfile)).items()
    own = (dist.parent / "images" / image / "Dockerfile").read_text()
    assert re.sub(rf"(?m)^(ARG (?:{'|'.join(defaults)}))=.*$", r"\1", dockerfile) == own


def _wheel(dist):
    with zipfile.ZipFile(dist / f"halos_eval-{version.version()}-py3-none-any.whl") as wheel:
        names = wheel.namelist()
    assert "halos_eval/shipped/suites/halos.yaml" in names
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests")]
