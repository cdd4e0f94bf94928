"""One folder with weights: the metadata beside them, and a checkpoint that is given by its location."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halos_eval.checkpoints.metadata import folder_url, from_location, look_into
from halos_eval.checkpoints.registry import Checkpoint, Metadata
from halos_eval.config.yaml_file import parse_yaml
from halos_eval.errors import BadInput
from tests.doubles import make_checkpoint


def metadata(folder):
    return look_into(str(folder)).metadata()


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
    assert metadata(tmp_path) == Metadata(
        chat_template="chatml", stop=("###", "\n\n"), profile="four", tags={"method": "kto"}
    )


def test_tags_are_text_as_it_is_written(tmp_path):
    text = """
common: &common {size: 8, 2026: 0x1F}
tags:
  <<: *common
  date: 2026-01-01
  day: 2026-02-30
  sft: yes
  dpo: "no"
  version: 1.10
  beta: 1e-1
  base: &base llama3-8b
  copy: *base
"""
    tags = parse_yaml(text.encode(), "here")["tags"]
    assert tags == {
        "size": "8", "2026": "0x1F", "date": "2026-01-01", "day": "2026-02-30", "sft": "yes", "dpo": "no",
        "version": "1.10", "beta": "1e-1", "base": "llama3-8b", "copy": "llama3-8b",
    }  # fmt: skip
    assert parse_yaml(text.encode(), "here")["common"] == {"size": 8, 2026: 31}
    (tmp_path / "halos_eval.yaml").write_text("tags: {size: 8, date: 2026-01-01, sft: yes, version: 1.10}")
    assert metadata(tmp_path).tags == {"size": "8", "date": "2026-01-01", "sft": "yes", "version": "1.10"}


@pytest.mark.parametrize("content", ["", "# nothing"])
def test_empty_metadata(tmp_path, content):
    (tmp_path / "halos_eval.yaml").write_text(content)
    assert metadata(tmp_path) == Metadata() == metadata(tmp_path / "none")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"chat_templates: chatml", "chat_templates"),
        (b"tags: {step: [5]}", "tags.step"),
        (b"tags: {step: }", "tags.step"),
        (b"stop: '###'", "stop"),
        (b"[a]", "halos_eval.yaml"),
        (b"[]", "halos_eval.yaml"),
        (b"a: [", "halos_eval.yaml"),
        (b"\xff", "halos_eval.yaml"),
        (b"a: !!python/object/apply:os.system [true]", "halos_eval.yaml"),
        (b"chat_template: ../other.jinja", "is outside"),
        (b"chat_template: /etc/template.jinja", "is outside"),
        (b"chat_template: /etc/hostname", "is outside"),
    ],
)
def test_what_is_wrong_in_metadata(tmp_path, content, words):
    (tmp_path / "halos_eval.yaml").write_bytes(content)
    with pytest.raises(BadInput) as caught:
        metadata(tmp_path)
    assert words in str(caught.value)


@given(content=st.binary(max_size=200) | st.text(alphabet="[]{}:-&*!|>'\"\n a1%?~", max_size=60).map(str.encode))
def test_whatever_is_in_metadata_is_taken_or_refused(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("any")
    (folder / "halos_eval.yaml").write_bytes(content)
    with suppress(BadInput):
        assert isinstance(metadata(folder), Metadata)


def test_a_template_beside_the_weights(tmp_path):
    (tmp_path / "halos_eval.yaml").write_text("chat_template: mine.jinja")
    assert metadata(tmp_path).chat_template == str(tmp_path.resolve() / "mine.jinja")


def test_a_template_that_is_a_link_out_of_the_folder(tmp_path):
    (tmp_path / "kto").mkdir()
    (tmp_path / "kto" / "mine.jinja").symlink_to("/etc/hostname")
    (tmp_path / "kto" / "halos_eval.yaml").write_text("chat_template: mine.jinja")
    with pytest.raises(BadInput, match="is outside"):
        metadata(tmp_path / "kto")


@pytest.mark.parametrize(
    ("location", "home", "url"),
    [
        ("/data/kto/", None, "/data/kto"),
        ("file:///data/kto", None, "/data/kto"),
        ("s3://bucket/kto/", None, "s3://bucket/kto"),
        ("./kto", "/lists", "/lists/kto"),
        ("../kto", "/lists", "/kto"),
        ("../kto", "s3://bucket/lists", "s3://bucket/kto"),
        ("./kto", "s3://bucket/lists", "s3://bucket/lists/kto"),
    ],
)
def test_a_folder_is_a_path_or_an_s3_url(location, home, url):
    assert folder_url(location, home) == url


@pytest.mark.parametrize(
    "location", ["kto", "", "./kto", "file://host/kto", "http://host/kto", "memory://a", "dbfs:/a", "simplecache::/a"]
)
def test_what_is_no_folder(location):
    with pytest.raises(BadInput, match="is not a folder; expected /PATH"):
        folder_url(location)
