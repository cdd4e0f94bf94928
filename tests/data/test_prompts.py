"""Prompt sets: errors of a file name the item, before anything is sampled."""

from __future__ import annotations

import json

import pytest

from halos_eval.data import prompts
from halos_eval.digests import digest_bytes
from halos_eval.errors import BadInput, DataUnavailable

GOOD = [{"instruction": "a", "output": "x"}, {"instruction": "b", "output": ""}]


@pytest.fixture
def load(tmp_path):
    def load(content, kind="prompts"):
        path = tmp_path / "set.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return prompts.load(str(path), kind)

    return load


@pytest.mark.parametrize("kind", ["prompts", "reference"])
def test_a_file(load, tmp_path, kind):
    found = load(GOOD, kind)
    assert found.rows == tuple(GOOD)
    assert found.digest == digest_bytes((tmp_path / "set.json").read_bytes())
    assert found.inputs("prompts") == {"prompts": found.digest}
    assert found.name == str(tmp_path / "set.json")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (b'[{"instruction": "a"}', "is not valid JSON"),
        ({"instruction": "a"}, "is not a JSON list of objects"),
        (["a"], "is not a JSON list of objects"),
        ([], "is empty"),
        ([GOOD[0], {"prompt": "b"}], "item 1 has no 'instruction'"),
        ([GOOD[0], {"instruction": 7}], "item 1 has no 'instruction'"),
        ([{"instruction": " \n"}], "item 0 has no 'instruction'"),
        ([*GOOD, {"instruction": "a"}], "items 0 and 2 have the same instruction"),
    ],
)
def test_what_is_wrong_in_a_file(load, content, words):
    with pytest.raises(BadInput) as caught:
        load(content)
    assert words in str(caught.value)
    assert "set.json" in str(caught.value)


@pytest.mark.parametrize("row", [{"instruction": "c"}, {"instruction": "c", "output": None}])
def test_a_reference_needs_outputs(load, row):
    load([*GOOD, row])
    with pytest.raises(BadInput, match="item 2 has no 'output'"):
        load([*GOOD, row], "reference")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(BadInput, match=r"none\.json: No such file.*Give alpaca_eval, demo or the path"):
        prompts.load(str(tmp_path / "none.json"), "prompts")


@pytest.mark.parametrize("kind", ["prompts", "reference"])
def test_the_demos_own_set(kind):
    assert len(prompts.load("demo", kind).rows) == 12


def test_alpaca_evals_set_without_a_hub(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataUnavailable, match=r"tatsu-lab/alpaca_eval/alpaca_eval\.json is unavailable.*HF_ENDPOINT"):
        prompts.load("alpaca_eval", "prompts")


def test_alpaca_evals_set_in_the_cache_has_its_revision(monkeypatch, tmp_path):
    folder = tmp_path / "datasets--tatsu-lab--alpaca_eval"
    commit = "0" * 40
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    (snapshot / "alpaca_eval_gpt4_baseline.json").write_text(json.dumps(GOOD))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = prompts.load("alpaca_eval", "reference")
    assert found.rows == tuple(GOOD)
    assert found.inputs("reference") == {"reference": found.digest, "reference_revision": commit}
