"""The files in examples/ are read by the project's own loaders, and the docs show them as they are."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from textwrap import dedent

import pytest
import yaml
from helm_python import Chart

from halos_eval.checkpoints.open_registry import open_registry
from halos_eval.checkpoints.registry import Metadata
from halos_eval.config.cluster import load_cluster
from halos_eval.config.judge import load_judge
from halos_eval.config.policy import load_policy
from halos_eval.config.suite import load_suite
from tests.doubles import make_checkpoint
from tests.helm.release import CHART, Release

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^ *```yaml\n *# examples/(?P<name>\S+)\n(?P<text>.*?)^ *```$", re.M | re.S)
SHOWN = [
    (page.name, found["name"], dedent(found["text"])) for page in PAGES for found in BLOCK.finditer(page.read_text())
]


def test_suite(monkeypatch):
    monkeypatch.setenv("HALOS_EVAL_SUITES", str(EXAMPLES / "suites"))
    suite = load_suite("chat")
    assert suite.parts == ["alpaca_eval", "ifeval", "gsm8k_cot"]
    assert all(task.apply_chat_template for task in suite.tasks.values())
    assert str(EXAMPLES / "suites" / "judges" / "llama-3.3-70b.yaml") in str(suite.alpaca_eval)


def test_a_suite_with_a_model_as_the_judge(monkeypatch):
    monkeypatch.setenv("HALOS_EVAL_SUITES", str(EXAMPLES / "suites"))
    judge = load_suite("served").alpaca_eval.judge
    assert (judge.label, judge.profile) == ("Llama-3.3-70B-Instruct", "large")


def test_judge():
    judge = load_judge(str(EXAMPLES / "suites" / "judges" / "llama-3.3-70b.yaml"))
    assert judge.name == "llama-3.3-70b"
    assert judge.model == "meta-llama/Llama-3.3-70B-Instruct"
    assert judge.price_per_million_tokens


@pytest.mark.parametrize(
    ("name", "tags", "suites"),
    [
        ("debug-1", {"method": "sft"}, ()),
        ("llama3-8b", {"method": "sft"}, ("quick",)),
        ("llama3-8b", {"method": "kto"}, ("halos",)),
    ],
)
def test_policy(monkeypatch, name, tags, suites):
    monkeypatch.setenv("HALOS_EVAL_POLICY", str(EXAMPLES / "policy.yaml"))
    assert load_policy().suites_for(name, tags) == suites
    for suite in suites:
        load_suite(suite)


def test_checkpoints(tmp_path):
    shutil.copy(EXAMPLES / "checkpoints.yaml", tmp_path)
    metadata = (EXAMPLES / "halos_eval.yaml").read_text()
    make_checkpoint(tmp_path / "llama3-8b-kto" / "FINAL", halos_eval_yaml=metadata)
    listed = open_registry(str(tmp_path / "checkpoints.yaml")).registered()
    assert not listed.skipped
    found = {one.name: one for one in listed.checkpoints}
    kto, zephyr = found["llama3-8b-kto"], found["zephyr-7b-beta"]
    assert kto.metadata.model_fields_set == set(Metadata.model_fields)
    assert kto.metadata.tags == {"base_model": "llama3-8b", "method": "kto"}
    assert (zephyr.revision, f"{zephyr.registered:%Y-%m-%d}") == ("main", "2026-11-01")


def test_overrides_are_values_of_the_chart():
    values = yaml.safe_load((EXAMPLES / "lab.yaml").read_text())
    overrides = yaml.safe_load((EXAMPLES / "overrides.yaml").read_text())
    values["profiles"] |= overrides["profiles"]
    with Chart.load(CHART) as chart:
        release = Release(chart.render(values, name="halos-eval", namespace="evaluation"), "evaluation")
    written = release.cluster.profiles["spot"].pod_overrides
    assert written["metadata"] == overrides["profiles"]["spot"]["podOverrides"]["metadata"]
    assert written["spec"]["securityContext"] == {"runAsUser": None, "runAsGroup": None, "fsGroup": None}


def test_chart_values():
    values = yaml.safe_load((EXAMPLES / "lab.yaml").read_text())
    with Chart.load(CHART) as chart:  # it checks the values against values.schema.json
        release = Release(chart.render(values, name="halos-eval", namespace="evaluation"), "evaluation")
    assert set(release.cluster.profiles) == {"default", "large", "cpu"}
    assert release.cluster.kubernetes.volumes["checkpoints"].persistent_volume_claim == "checkpoints"
    assert set(release.cluster.kubernetes.secrets) == set(values["kubernetes"]["secrets"])


def test_cluster_file_of_a_machine(monkeypatch):
    monkeypatch.setenv("HALOS_EVAL_CLUSTER", str(EXAMPLES / "machine.yaml"))
    assert load_cluster().gpu_profile("default").gpus == load_cluster().pools.gpu == 4


@pytest.mark.parametrize(("page", "name", "text"), SHOWN, ids=[f"{page}-{name}" for page, name, _ in SHOWN])
def test_the_docs_show_the_file(page, name, text):
    assert text == (EXAMPLES / name).read_text()


def test_every_example_is_shown():
    files = {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.yaml")}
    assert files == {name for _, name, _ in SHOWN}
