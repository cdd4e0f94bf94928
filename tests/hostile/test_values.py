"""Texts of strangers reach the stages as they are, or are rejected with a message that says which."""

from __future__ import annotations

import json
import posixpath
import re
import struct
import tempfile
from datetime import timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from halos_eval.checkpoints.folders import FolderRegistry
from halos_eval.checkpoints.listed import ListRegistry
from halos_eval.checkpoints.metadata import parse
from halos_eval.checkpoints.registry import Checkpoint, Metadata
from halos_eval.config.cluster import load_cluster
from halos_eval.config.suite import load_suite
from halos_eval.errors import BadInput, HalosEvalError
from halos_eval.planning.plan import Plan, make_plan, read_plan, save_plan
from halos_eval.planning.selection import Selection
from halos_eval.stages.options import LONGEST_ARGUMENT
from halos_eval.storage import layout
from halos_eval.untrusted import moment, whole
from tests.doubles import make_checkpoint
from tests.hostile.values import BATCH, HOSTILE, JSON
from tests.stages.test_run import parse as parsed

URLS = [
    lambda root, name: layout.plan_url(root, "suite", name),
    layout.runs_url,
    layout.weights_url,
    lambda root, name: layout.turn_url(root, "suite", name),
    lambda root, name: layout.gate_url(root, "suite", name),
    lambda root, name: layout.comparison_url(root, "suite", name, name),
]


@settings(max_examples=100)
@given(BATCH)
def test_every_name_has_paths_inside_the_store_or_a_message(names):
    for name in names:
        try:
            safe = layout.safe_name(name)
        except BadInput as error:
            assert repr(name) in str(error)
            for url in URLS:
                with pytest.raises(BadInput):
                    url("/store", name)
            continue
        assert re.fullmatch(r"[A-Za-z0-9._/-]+", safe)
        for url in URLS:
            path = url("/store", name)
            assert path == posixpath.normpath(path) == url("/store", safe)
            assert path.startswith("/store/")


@settings(max_examples=100)
@given(BATCH)
def test_two_names_never_share_a_folder(names):
    known = {name for name in names if layout.is_original(name)}
    assert len({layout.folder_name(name) for name in known}) == len(known)


@settings(max_examples=15, deadline=None)
@given(st.lists(HOSTILE.map(lambda text: text.encode(errors="surrogateescape" if text.isascii() else "surrogatepass")
                            .replace(b"\0", b"").replace(b"/", b"")[:200]), min_size=10, max_size=10))  # fmt: skip
def test_every_folder_is_evaluated_or_skipped_with_a_reason(names):
    with tempfile.TemporaryDirectory() as root:
        wanted = {name for name in names if name not in {b"", b".", b".."} and not name.startswith(b".")}
        for name in wanted:
            Path(root, name.decode(errors="surrogateescape")).mkdir()
            make_checkpoint(Path(root, name.decode(errors="surrogateescape"), "FINAL"))
        listed = FolderRegistry(root).registered()
        assert len(listed.checkpoints) + len(listed.skipped) == len(wanted)
        # As the task `find` gives them to the next one.
        assert Selection(left_out=listed.skipped).model_dump_json()
        for one in listed.checkpoints:
            assert Path(one.location).is_dir()
            assert FolderRegistry(root).get(one.name) == one


def test_folders_whose_names_are_no_text_are_skipped_by_names_that_can_be_stored(tmp_path):
    for name in (b"kto\xfe", b"kto\xff", b"kto\\udcff"):
        make_checkpoint(Path(str(tmp_path), name.decode(errors="surrogateescape"), "FINAL"))
    make_checkpoint(tmp_path / "dpo" / "FINAL")
    listed = FolderRegistry(str(tmp_path)).registered()
    assert [one.name for one in listed.checkpoints] == ["dpo"]
    stored = Selection.model_validate_json(Selection(left_out=listed.skipped).model_dump_json()).left_out
    assert sorted(stored) == [r"kto\\udcff", r"kto\udcfe", r"kto\udcff"]


TENSOR = st.fixed_dictionaries({"data_offsets": JSON | st.lists(JSON)}, optional={"shape": JSON})
HEADERS = st.dictionaries(HOSTILE, TENSOR | JSON, max_size=3) | JSON


@settings(max_examples=60, deadline=None)
@given(HEADERS)
@example({"a": {"data_offsets": [0, float("inf")], "shape": [1]}})
@example({"a": {"data_offsets": [0, 4], "shape": [float("inf")]}})
@example({"a": {"data_offsets": [0, float("nan")], "shape": [1]}})
@example({"a": {"data_offsets": [0, 10**400], "shape": [10**400]}})
def test_weights_with_any_header_are_skipped(header):
    data = json.dumps(header).encode()
    with tempfile.TemporaryDirectory() as root:
        make_checkpoint(Path(root, "dpo", "FINAL"))
        folder = make_checkpoint(Path(root, "kto", "FINAL"))
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(data)) + data + b"more")
        listed = FolderRegistry(root).registered()
        assert [one.name for one in listed.checkpoints] in (["dpo"], ["dpo", "kto"], ["kto", "dpo"])
        assert len(listed.checkpoints) + len(listed.skipped) == 2


@pytest.mark.parametrize(
    "value", ["1" + ":59" * 400 + ".5", "!!int ''", "!!timestamp x", "!!bool x", "!!set [1]", "!!float x", "2026-02-30"]
)
def test_metadata_that_yaml_cannot_construct_is_the_reason_of_its_checkpoint(tmp_path, value):
    make_checkpoint(tmp_path / "dpo" / "FINAL")
    (make_checkpoint(tmp_path / "kto" / "FINAL") / "halos_eval.yaml").write_text(f"stop: [{value}]")
    listed = FolderRegistry(str(tmp_path)).registered()
    assert [one.name for one in listed.checkpoints] == ["dpo"]
    assert "halos_eval.yaml is not valid YAML" in listed.skipped["kto"]


@given(st.floats(allow_nan=False) | st.integers())
def test_a_file_may_be_of_any_year(seconds):
    assert 1 <= moment(seconds).astimezone(timezone(timedelta(hours=12))).year <= 9999


@settings(max_examples=40, deadline=None)
@given(st.lists(HOSTILE, min_size=12, max_size=12))
def test_an_entry_of_a_list_is_itself_or_an_error(texts):
    name, location, revision, template, profile, start, *rest = texts
    entry = {"name": name, "location": location, "revision": revision, "chat_template": template, "profile": profile}
    entry |= {"think_start_token": start, "stop": rest[:2], "tags": dict(zip(rest[2::2], rest[3::2], strict=True))}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "list.yaml")
        path.write_text(json.dumps({"checkpoints": [entry]}))  # YAML, too
        try:
            listed = ListRegistry(str(path)).registered()
        except HalosEvalError as error:
            assert str(path) in str(error)
            return
        assert len(listed.checkpoints) + len(listed.skipped) == 1
        for one in listed.checkpoints:
            assert one.metadata.stop == tuple(entry["stop"])
            assert {**one.metadata.tags, **entry["tags"]} == one.metadata.tags


@settings(max_examples=100)
@given(BATCH)
def test_tags_are_text_as_it_is_written(texts):
    tags = dict(zip(texts[::2], texts[1::2], strict=True))
    data = json.dumps({"tags": tags}).encode()
    try:
        found = parse(data, Metadata, "halos_eval.yaml")
    except BadInput as error:
        assert "halos_eval.yaml" in str(error)
        assert any(whole(text) != text for text in texts)
    else:
        assert found.tags == tags


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """``planned(metadata, suite document)``: (the plan read back from the store, the suite)."""
    home = tmp_path_factory.mktemp("planned")
    folder = make_checkpoint(home / "kto" / "FINAL")

    def planned(metadata, document):
        path = home / "own.yaml"
        path.write_text(json.dumps(document))  # YAML, too
        suite = load_suite(str(path))
        checkpoint = Checkpoint(name="kto", location=str(folder), metadata=parse(metadata, Metadata, "metadata"))
        plan = make_plan(suite, checkpoint, str(home), load_cluster())
        save_plan(plan, suite, str(home))
        return read_plan(layout.plan_url(str(home), "own", "kto")), suite

    return planned


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(HOSTILE, min_size=10, max_size=10))
def test_a_plans_commands_have_the_values_of_suite_and_checkpoint(planned, texts):
    system, begin, end, key, value, stop, description, tag, kept, more = texts
    metadata = {"think_start_token": begin, "think_end_token": end, "stop": [stop], "tags": {tag: kept}}
    sampling = {"system_instruction": system, "chat_template_args": {key: value}, "stop": [more]}
    alpaca = {"prompts": "demo", "reference": "demo", "judge": "demo", "sampling": sampling}
    try:
        plan, suite = planned(json.dumps(metadata).encode(), {"description": description, "alpaca_eval": alpaca})
    except HalosEvalError as error:
        assert error.exit_code in {2, 3}
        assert str(error).strip()
        return
    assert plan.tags == {tag: kept}
    config = parsed(next(job for job in plan.jobs if job.stage == "sample").argv)
    assert config.system_instruction == system == suite.alpaca_eval.sampling.system_instruction
    assert (config.think_start_token, config.think_end_token) == (begin, end)
    assert config.chat_template_args == {key: value}
    assert set(config.stop) == {stop, more}
    assert Plan.model_validate_json(json.dumps(plan.model_dump(mode="json"))) == plan


@pytest.mark.parametrize("text", ["a\0b", "x" * LONGEST_ARGUMENT])
def test_a_value_that_no_command_line_can_have_is_rejected_by_the_plan(planned, text):
    alpaca = {"prompts": "demo", "reference": "demo", "judge": "demo", "sampling": {"system_instruction": text}}
    with pytest.raises(BadInput, match="the argument '--system-instruction="):
        planned(b"", {"alpaca_eval": alpaca})


@settings(max_examples=10, deadline=None)
@given(BATCH)
def test_an_unknown_suite_part_or_checkpoint_has_a_message(texts):
    suite = load_suite("demo")
    with tempfile.TemporaryDirectory() as root:
        registry = FolderRegistry(root)
        for text in texts:
            for call in (load_suite, lambda one: suite.keep([one]), registry.get):
                with pytest.raises(HalosEvalError) as raised:
                    call(text)
                assert str(raised.value).strip()
