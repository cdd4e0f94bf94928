"""The registry of folders: HALOs' EXPERIMENT/FINAL, and nothing outside the root."""

from __future__ import annotations

import pytest

from halos_eval.errors import BadInput
from halos_eval.registry.folders import Checkpoint, FolderRegistry, Metadata, from_location, read_metadata
from tests.doubles import make_adapter, make_checkpoint


@pytest.fixture
def registry(tmp_path):
    root = tmp_path / "checkpoints"
    make_checkpoint(root / "kto" / "FINAL")
    make_checkpoint(root / "kto" / "step-100")
    make_checkpoint(root / "plain")
    make_adapter(root / "lora", root / "plain")
    for name in ("logs", ".cache", "a b", "a__b"):
        make_checkpoint(root / name) if name != "logs" else (root / name).mkdir()
    make_checkpoint(tmp_path / "outside")
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "notes.txt").write_text("")
    return FolderRegistry(str(root))


def test_safe_names_with_weights_are_listed(registry):
    assert registry.names() == ["kto", "link", "lora", "plain"]
    for name in ("kto", "link", "lora", "plain"):  # a lab's link leads to another disk
        assert registry.get(name).name == name


def test_an_experiment_means_its_final_folder(registry):
    assert registry.get("kto") == Checkpoint(name="kto", location=str(registry.root / "kto" / "FINAL"))
    assert registry.get("kto/FINAL") == registry.get("kto")


def test_another_folder_of_an_experiment(registry):
    found = registry.get("kto/step-100")
    assert (found.name, found.location) == ("kto/step-100", str(registry.root / "kto" / "step-100"))


@pytest.mark.parametrize("name", ["../outside", "/etc", "kto/../../outside", "a__b", ".cache", "notes.txt", ""])
def test_nothing_outside_and_nothing_unsafe(registry, name):
    with pytest.raises(BadInput):
        registry.get(name)


def test_an_unknown_name_shows_some_that_are_known(registry):
    with pytest.raises(BadInput, match=r"no checkpoint 'dpo' below .*: there are kto, link, lora, plain"):
        registry.get("dpo")


def test_an_empty_registry(tmp_path):
    registry = FolderRegistry(str(tmp_path / "none"))
    assert registry.names() == []
    with pytest.raises(BadInput, match="there are none"):
        registry.get("kto")


def test_a_checkpoint_by_its_location(tmp_path):
    folder = make_checkpoint(tmp_path / "kto" / "FINAL", halos_eval_yaml="stop: ['###']")
    assert from_location(str(folder)) == Checkpoint(name="kto", location=str(folder), metadata=Metadata(stop=("###",)))
    assert from_location("team/model") == Checkpoint(name="model", location="team/model")


@pytest.mark.parametrize("location", ["", "/", "..", "a/--force", "a/b;c"])
def test_a_location_without_a_safe_name(location):
    with pytest.raises(BadInput, match="checkpoint name"):
        from_location(location)


def test_metadata(tmp_path):
    text = "chat_template: chatml\nstop: ['###', \"\\n\\n\"]\nprofile: four\ntags: {method: kto}"
    (tmp_path / "halos_eval.yaml").write_text(text)
    assert read_metadata(tmp_path) == Metadata(
        chat_template="chatml", stop=("###", "\n\n"), profile="four", tags={"method": "kto"}
    )


@pytest.mark.parametrize("content", ["", "# nothing"])
def test_empty_metadata(tmp_path, content):
    (tmp_path / "halos_eval.yaml").write_text(content)
    assert read_metadata(tmp_path) == Metadata() == read_metadata(tmp_path / "none")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"chat_templates: chatml", "chat_templates"),
        (b"tags: {step: 5}", "tags.step"),
        (b"stop: '###'", "stop"),
        (b"[a]", "halos_eval.yaml"),
        (b"a: [", "halos_eval.yaml"),
        (b"\xff", "halos_eval.yaml"),
        (b"chat_template: ../other.jinja", "outside the checkpoint's folder"),
        (b"chat_template: /etc/template.jinja", "outside the checkpoint's folder"),
        (b"chat_template: /etc/hostname", "outside the checkpoint's folder"),
    ],
)
def test_what_is_wrong_in_metadata(tmp_path, content, words):
    (tmp_path / "halos_eval.yaml").write_bytes(content)
    with pytest.raises(BadInput) as caught:
        read_metadata(tmp_path)
    assert words in str(caught.value)


def test_a_template_beside_the_weights(tmp_path):
    (tmp_path / "halos_eval.yaml").write_text("chat_template: mine.jinja")
    assert read_metadata(tmp_path).chat_template == str(tmp_path.resolve() / "mine.jinja")
