"""The policy file: which suites a checkpoint gets, and what is wrong with a file."""

import pytest

from halos_eval.config.policy import load_policy
from halos_eval.errors import BadInput

POLICY = """
look_back_days: 2
limits: {night: {gpu_hours: 8}}
rules:
  - {match: "debug-*", suites: []}
  - {match: "llama*", tags: {method: "[kd][tp]o", size: "*"}, suites: [quick, halos]}
  - {tags: {method: sft}, suites: [quick]}
"""


@pytest.fixture
def policy(tmp_path, monkeypatch):
    """Writes a policy file and names it."""

    def write(text):
        (tmp_path / "policy.yaml").write_text(text)
        monkeypatch.setenv("HALOS_EVAL_POLICY", str(tmp_path / "policy.yaml"))

    return write


@pytest.mark.parametrize(
    ("name", "tags", "suites"),
    [
        ("debug-llama", {"method": "sft"}, ()),
        ("llama3-kto", {"method": "kto", "size": "8b"}, ("quick", "halos")),
        ("llama3-kto", {"method": "kto"}, ()),
        ("llama3-ppo", {"method": "ppo", "size": "8b"}, ()),
        ("llama3-sft", {"method": "sft"}, ("quick",)),
        ("mistral", {}, ()),
    ],
)
def test_the_first_matching_rule_applies(name, tags, suites, policy):
    policy(POLICY)
    assert load_policy().suites_for(name, tags) == suites


def test_patterns_of_tags_are_text_as_it_is_written(policy):
    policy("rules: [{tags: {version: 1.10, sft: yes}, suites: [quick]}]")
    assert load_policy().suites_for("kto", {"version": "1.10", "sft": "yes"}) == ("quick",)
    assert load_policy().suites_for("kto", {"version": "1.1", "sft": "true"}) == ()


def test_what_is_not_said_is_not_limited(policy):
    policy(POLICY)
    limits = load_policy().limits
    assert (limits.night.gpu_hours, limits.night.judge_dollars, limits.run.gpu_hours) == (8, None, None)


def test_the_one_that_ships_gives_everything_the_whole_suite(monkeypatch):
    monkeypatch.delenv("HALOS_EVAL_POLICY", raising=False)
    assert load_policy().suites_for("any/step-1", {}) == ("halos",)


def test_all_errors_are_reported_at_once(policy):
    policy("look_back_days: -1\nrules: [{suite: halos}]\nlimit: {}")
    with pytest.raises(BadInput) as wrong:
        load_policy()
    for words in ("look_back_days", "suites", "suite", "limit"):
        assert words in str(wrong.value)


@pytest.mark.parametrize("text", ["", "[]", "rules: {", "rules: 1"])
def test_what_is_no_policy(text, policy):
    policy(text)
    with pytest.raises(BadInput, match="policy"):
        load_policy()


@pytest.mark.parametrize(
    ("gate", "results", "words"),
    [
        ("{against: best, mlflow_alias: latest}", "true", "reserves the alias latest"),
        ("{against: best, mlflow_alias: v3}", "true", "reserves the alias v3"),
        ("{against: best, mlflow_alias: a/b}", "true", "mlflow_alias"),
        ("{against: best, mlflow_alias: champion}", "false", "needs `mlflow_results: true`"),
    ],
)
def test_an_alias_is_one_that_mlflow_can_get(policy, gate, results, words):
    policy(f"{{gates: [{gate}], mlflow_results: {results}, rules: []}}")
    with pytest.raises(BadInput, match=words):
        load_policy()


def test_a_file_that_is_not_there(monkeypatch):
    monkeypatch.setenv("HALOS_EVAL_POLICY", "/nowhere.yaml")
    with pytest.raises(BadInput, match="HALOS_EVAL_POLICY"):
        load_policy()
