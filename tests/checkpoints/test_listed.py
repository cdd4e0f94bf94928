"""The registry of a list: valid entries, and all errors at once."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
import yaml

from halos_eval.checkpoints.listed import ListRegistry
from halos_eval.checkpoints.registry import Checkpoint, Metadata
from halos_eval.errors import BadInput, DataUnavailable
from tests.doubles import make_checkpoint

HUB = {"name": "zephyr", "location": "HuggingFaceH4/zephyr-7b-beta", "registered": "2026-11-01"}


@pytest.fixture
def registry(tmp_path):
    """``registry(*entries)`` gives a registry with these."""

    def registry(*entries):
        (tmp_path / "list.yaml").write_text(yaml.dump({"checkpoints": list(entries)}))
        return ListRegistry(str(tmp_path / "list.yaml"))

    return registry


def mistakes(registry):
    with pytest.raises(BadInput) as caught:
        registry.registered()
    return str(caught.value)


def test_a_hub_repository_with_its_revision(registry):
    found = registry(HUB | {"revision": "v1.0", "stop": ["###"], "tags": {"method": "dpo"}}).get("zephyr")
    assert found == Checkpoint(
        name="zephyr",
        location="HuggingFaceH4/zephyr-7b-beta",
        revision="v1.0",
        registered=datetime(2026, 11, 1, tzinfo=UTC),
        metadata=Metadata(stop=("###",), tags={"method": "dpo"}),
    )


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-01", datetime(2026, 11, 1, tzinfo=UTC)),
        ("'2026-11-01'", datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026-11-01 12:30:00", datetime(2026, 11, 1, 12, 30, tzinfo=UTC)),
        ("2026-11-01T12:30:00+09:00", datetime(2026, 11, 1, 3, 30, tzinfo=UTC)),
        ("'2026-11-01T12:30Z'", datetime(2026, 11, 1, 12, 30, tzinfo=UTC)),
    ],
)
def test_days_and_times_are_in_utc(tmp_path, text, moment):
    (tmp_path / "list.yaml").write_text(f"checkpoints: [{{name: a, location: b/c, registered: {text}}}]")
    registry = ListRegistry(str(tmp_path / "list.yaml"))
    assert registry.get("a").registered == moment
    assert [one.name for one in registry.registered(moment, None).checkpoints] == ["a"]
    assert registry.registered(None, moment).checkpoints == []


@pytest.mark.parametrize("value", [20261101, 1.5, "20261301", "yesterday", True, "0001-01-01T00:00:00+14:00"])
def test_what_is_no_time(registry, value):
    assert "checkpoints.0.registered: " in mistakes(registry(HUB | {"registered": value}))


@pytest.mark.parametrize("home", ["", "file://"])
def test_a_folder_may_be_named_from_the_lists_own(tmp_path, home):
    make_checkpoint(tmp_path / "weights" / "kto" / "FINAL")
    entries = [
        {"name": "a", "location": "./weights/kto/FINAL"},
        {"name": "b", "location": str(tmp_path / "weights" / "kto" / "FINAL")},
        {"name": "c", "location": f"file://{tmp_path}/weights/kto/FINAL/"},
        {"name": "d", "location": "../" + tmp_path.name + "/weights/kto/FINAL"},
    ]
    (tmp_path / "list.yaml").write_text(yaml.dump({"checkpoints": entries}))
    listed = ListRegistry(f"{home}{tmp_path}/list.yaml").registered()
    assert listed.skipped == {}
    places = {one.name: one.location for one in listed.checkpoints}
    assert places == dict.fromkeys("abcd", str(tmp_path / "weights" / "kto" / "FINAL"))


def test_what_the_list_says_counts_before_what_lies_beside_the_weights(registry, tmp_path):
    metadata = "{chat_template: chatml, profile: large, stop: [a], tags: {method: kto, base_model: llama}}"
    folder = make_checkpoint(tmp_path / "kto", halos_eval_yaml=metadata)
    entry = {"name": "kto", "location": str(folder), "stop": [], "tags": {"method": "dpo", "team": "x"}}
    assert registry(entry).get("kto").metadata == Metadata(
        chat_template="chatml", profile="large", stop=(), tags={"method": "dpo", "base_model": "llama", "team": "x"}
    )


def test_a_template_beside_the_list(registry, tmp_path):
    found = registry(HUB | {"chat_template": "zephyr.jinja"}).get("zephyr")
    assert found.metadata.chat_template == str(tmp_path / "zephyr.jinja")


def test_storage_that_fails_costs_its_own_entry_only(registry, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    listed = registry(HUB, {"name": "kto", "location": "s3://bucket/kto"}).registered()
    assert [one.name for one in listed.checkpoints] == ["zephyr"]
    assert "AWS_ACCESS_KEY_ID" in listed.skipped["kto"]


def test_all_errors_are_reported_at_once(registry, tmp_path):
    words = mistakes(
        registry(
            HUB,
            HUB,
            {"name": "a;b", "location": "kto"},
            {"name": "c", "location": "/c", "revision": "main"},
            {"name": "d", "location": "d/d"},
            {"name": "e", "location": "https://example.org/e", "method": "kto"},
            {"location": "/f", "tags": {"step": [5]}},
            {"name": "g", "location": "gs://bucket/g", "registered": "soon"},
        )
    )
    for words_of_one in (
        f"{tmp_path}/list.yaml: ",
        "checkpoints.1.name: Value error, zephyr is listed twice",
        "checkpoints.2.name: Value error, checkpoint name 'a;b'",
        "checkpoints.2.location: Value error, kto is not a folder; expected",
        "checkpoints.3.revision: Value error, revision is only valid for a hub repository",
        "checkpoints.4.registered: Value error, a hub repository needs the time of its registration",
        "checkpoints.5.location: Value error, https://example.org/e is not a folder; expected",
        "checkpoints.5.method: Extra inputs",
        "checkpoints.6.name: Field required",
        "checkpoints.6.tags.step: ",
        "checkpoints.7.location: Value error, gs://bucket/g is not a folder; expected",
        "checkpoints.7.registered: ",
    ):
        assert words_of_one in words


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "checkpoints: Field required"),
        (b"- name: a", "list.yaml: document: "),
        (b"checkpoints: {a: b}", "checkpoints: "),
        (b"checkpoints: [", "is not valid YAML"),
        (b"\xff", "is not valid YAML"),
        (b"models: []\ncheckpoints: []", "models: Extra inputs"),
    ],
)
def test_what_is_no_list(tmp_path, content, words):
    (tmp_path / "list.yaml").write_bytes(content)
    assert words in mistakes(ListRegistry(str(tmp_path / "list.yaml")))


def test_a_list_that_is_not_there(tmp_path):
    registry = ListRegistry(str(tmp_path / "none.yaml"))
    for read in (registry.registered, lambda: registry.get("kto")):
        with pytest.raises(DataUnavailable, match=r"none\.yaml does not exist. Check HALOS_EVAL_CHECKPOINTS"):
            read()
