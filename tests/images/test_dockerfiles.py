"""Rules for all images: a fixed base, locked packages, no root, no secret, and the commit in a label."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from halos_eval.processes import NO_REPORTS

ROOT = Path(__file__).parents[2]
IMAGES = ("airflow", "worker", "judge")


def instructions(image):
    """Return the (instruction, arguments) pairs of a Dockerfile, without comments and with continued lines joined."""
    text = (ROOT / "images" / image / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(line.split()[0].upper(), " ".join(line.split()[1:])) for line in joined]


def arguments(image, instruction):
    return [found for name, found in instructions(image) if name == instruction]


def test_no_image_is_forgotten():
    assert {path.parent.name for path in (ROOT / "images").glob("*/Dockerfile")} == set(IMAGES)


@pytest.mark.parametrize("image", IMAGES)
def test_the_base_is_one_argument_with_a_fixed_tag(image):
    assert "PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm" in arguments(image, "ARG")
    bases = [found.split()[0] for found in arguments(image, "FROM")]
    assert set(bases) <= {"${PYTHON_IMAGE}", "scratch"}
    assert bases[-1] == "${PYTHON_IMAGE}"


@pytest.mark.parametrize("image", IMAGES)
def test_it_does_not_run_as_root(image):
    user = {"airflow": "50000:0"}.get(image, "1000:1000")  # by number, so that Kubernetes can check that it is not root
    after = [name for name, _ in instructions(image)]
    assert arguments(image, "USER") == [user]
    assert set(after[after.index("USER") :]) <= {"USER", "ENTRYPOINT", "CMD"}


@pytest.mark.parametrize("image", IMAGES)
def test_packages_come_from_the_lock_with_its_hashes(image):
    (sync,) = [found for found in arguments(image, "RUN") if "uv pip sync" in found]
    assert "--require-hashes" in sync
    assert "requirements.txt" in sync
    installs = [found for found in arguments(image, "RUN") if re.search(r"pip (--python \S+ )?install", found)]
    for install in installs:
        assert "--no-deps" in install or '"uv==' in install, install


@pytest.mark.parametrize("image", IMAGES)
def test_a_source_is_built_with_locked_tools_or_not_at_all(image):
    runs = " ".join(arguments(image, "RUN"))
    assert "--no-build " in runs or "--build-constraints /opt/halos-eval/requirements.txt" in runs
    assert "uv build --offline" in runs


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_the_worker_has_a_lock_for_each_variant(variant):
    assert "WORKER=cuda" in arguments("worker", "ARG")  # the default is for GPUs
    assert "images/worker/requirements-${WORKER}.txt /opt/halos-eval/requirements.txt" in arguments("worker", "COPY")
    assert (ROOT / "images" / "worker" / f"requirements-{variant}.txt").exists()


def test_all_that_airflow_reads_is_in_its_image():
    for folder in ("dags", "plugins"):
        if (ROOT / folder).is_dir():
            assert f"{folder} /opt/airflow/{folder}" in arguments("airflow", "COPY")


@pytest.mark.parametrize("image", IMAGES)
def test_dependencies_are_below_the_package(image):
    order = [found for name, found in instructions(image) if name in {"RUN", "COPY"}]
    sync = next(number for number, found in enumerate(order) if "uv pip sync" in found)
    package = max(number for number, found in enumerate(order) if "wheel" in found and "install" in found)
    assert sync < package


@pytest.mark.parametrize("image", IMAGES)
def test_labels_describe_the_image_and_its_commit(image):
    labels = " ".join(arguments(image, "LABEL"))
    for name in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{name}=" in labels
    assert 'revision="$COMMIT"' in labels
    assert "HALOS_EVAL_COMMIT=$COMMIT" in " ".join(arguments(image, "ENV"))


@pytest.mark.parametrize("image", IMAGES)
def test_it_adds_no_downloads_and_no_secrets(image):
    assert arguments(image, "ADD") == []
    known = {"ARG": arguments(image, "ARG"), "ENV": arguments(image, "ENV")}
    assert not re.search(r"KEY|TOKEN|SECRET|PASSWORD", str(known))


@pytest.mark.parametrize("image", ["worker", "judge"])
def test_files_are_written_below_tmp(image):
    variables = " ".join(arguments(image, "ENV"))
    assert " HOME=/tmp" in variables
    assert all(value.startswith("/tmp") for value in re.findall(r"(?:CACHE\w*|HF_HOME)=(\S+)", variables))
    assert arguments(image, "ENTRYPOINT") == ['["halos-eval"]']


def test_the_build_context_has_only_needed_files():
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    kept = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert kept == {"LICENSE", "README.md", "pyproject.toml", "dags", "plugins", "halos_eval", "images"}


@pytest.mark.parametrize("image", IMAGES)
def test_no_library_reports_its_use(image):
    variables = " ".join(arguments(image, "ENV")).split()
    assert {f"{name}={value}" for name, value in NO_REPORTS.items()} <= set(variables)
    assert ("AIRFLOW__USAGE_DATA_COLLECTION__ENABLED=False" in variables) == (image == "airflow")
