"""Task files of the lab: whatever they name or include is part of the fingerprint, or is rejected."""

from __future__ import annotations

import pytest

from halos_eval.config.suite import HarnessSettings
from halos_eval.errors import BadInput
from halos_eval.stages.harness.options import harness_identity
from halos_eval.stages.harness.own_tasks import outside
from halos_eval.storage.records import CheckpointRef

ANY = CheckpointRef(name="one", location="/one", digest="d")


@pytest.fixture
def fingerprint(tmp_path):
    """``fingerprint(text)`` writes a task file with ``text``, and returns the fingerprint of its stage."""
    folder = tmp_path / "tasks"
    folder.mkdir()

    def fingerprint(text):
        (folder / "mine.yaml").write_text(f"task: mine\ndoc_to_text: !function utils.text\n{text}")
        return harness_identity("mine", HarnessSettings(), str(folder), None, ANY).fingerprint

    return fingerprint


@pytest.mark.parametrize(
    "text",
    [
        "dataset_path: json\ndataset_kwargs: {{data_files: {{test: {file}}}}}",
        "dataset_path: json\ndataset_kwargs: {{data_files: [{file}]}}",
        "dataset_path: json\ndataset_kwargs: {{data_files: {folder}/*.jsonl}}",
        "dataset_path: {folder}",
        "dataset_path: json\ndataset_kwargs: {{data_dir: {folder}}}",
    ],
)
def test_a_row_appended_to_data_outside_the_folder_is_another_fingerprint(fingerprint, tmp_path, text):
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "my.jsonl"
    file.write_text('{"question": 1}\n')
    text = text.format(file=file, folder=file.parent)
    before = fingerprint(text)
    assert fingerprint(text) == before
    file.write_text('{"question": 1}\n{"question": 2}\n')
    assert fingerprint(text) != before


def test_data_inside_the_folder_counts_once(fingerprint, tmp_path):
    file = tmp_path / "tasks" / "my.jsonl"
    file.write_text("{}")
    text = f"dataset_kwargs: {{data_files: {file}}}"
    before = fingerprint(text)
    file.write_text("{} ")
    assert fingerprint(text) != before


@pytest.mark.parametrize("text", ["dataset_path: cais/mmlu", "dataset_kwargs: {data_files: 'hf://datasets/a/b.csv'}"])
def test_data_of_the_hub_is_pinned_by_the_manifest(fingerprint, text):
    assert fingerprint(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dataset_kwargs: {data_files: my.jsonl}", r"relative to the working directory.*Write .*/tasks/my\.jsonl"),
        ("dataset_path: ./data", "relative to the working directory"),
        ("dataset_kwargs: {data_files: /nowhere/my.jsonl}", "does not exist. Mount it"),
        ("dataset_kwargs: [", "is not valid YAML"),
    ],
)
def test_data_that_cannot_be_pinned_is_rejected(fingerprint, text, words):
    with pytest.raises(BadInput, match=words):
        fingerprint(text)


@pytest.fixture
def base(fingerprint, tmp_path):
    """``base(text, include)`` writes the file that the task file includes, and returns the fingerprint."""

    def base(text, include="_base_yaml", own=""):
        file = tmp_path / "tasks" / include
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        return fingerprint(f"include: {include}\n{own}")

    return base


@pytest.mark.parametrize("include", ["_base_yaml", "base.yaml", "../common/_base_yaml"])
def test_data_that_an_included_file_names_counts(base, tmp_path, include):
    data = tmp_path / "data.jsonl"
    data.write_text("{}")
    text = f"dataset_kwargs: {{data_files: {{test: {data}}}}}"
    before = base(text, include)
    data.write_text("{} ")
    assert base(text, include) != before


@pytest.mark.parametrize("include", ["../common/base.yaml", "../common/_base_yaml"])
@pytest.mark.parametrize("absolute", [False, True])
def test_a_file_that_is_included_from_outside_the_folder_counts(fingerprint, tmp_path, include, absolute):
    file = tmp_path / "tasks" / include
    (tmp_path / "common").mkdir()
    text = f"include: {file.resolve() if absolute else include}"
    file.write_text("doc_to_text: one")
    before = fingerprint(text)
    assert outside(tmp_path / "tasks") == [file.resolve()]
    file.write_text("doc_to_text: two")
    assert fingerprint(text) != before


def test_the_functions_of_a_file_that_is_included_from_outside_count(base, tmp_path):
    (tmp_path / "common").mkdir()
    code = tmp_path / "common" / "utils.py"
    code.write_text("def target(doc): return 1")
    text, include = "doc_to_target: !function utils.target", "../common/base.yaml"
    before = base(text, include)
    code.write_text("def target(doc): return 2")
    assert base(text, include) != before


def test_an_include_of_an_include_counts(base, tmp_path):
    (tmp_path / "far_yaml").write_text("doc_to_text: one")
    before = base("include: ../far_yaml")
    (tmp_path / "far_yaml").write_text("doc_to_text: two")
    assert base("include: ../far_yaml") != before


def test_data_that_the_task_file_overrides_is_not_needed(base, tmp_path):
    own = "dataset_kwargs: {data_files: 'hf://datasets/a/b.csv'}"
    assert base("dataset_kwargs: {data_files: /nowhere/a.jsonl}", own=own)


def test_includes_inside_the_folder_and_of_lm_eval_itself_leave_fingerprints_as_they_were(base, tmp_path):
    text = "include: /usr/lib/python3.11/site-packages/lm_eval/tasks/gsm8k/gsm8k.yaml\ndoc_to_text: !function utils.a"
    (tmp_path / "tasks" / "utils.py").write_text("")
    assert base(text)
    assert outside(tmp_path / "tasks") == []


def test_files_that_the_folder_links_count_once(fingerprint, tmp_path):
    for name, text in (("linked.yaml", "include: _base_yaml"), ("_base_yaml", "doc_to_text: one")):
        (tmp_path / name).write_text(text)
        (tmp_path / "tasks" / name).symlink_to(tmp_path / name)
    assert fingerprint("")
    assert outside(tmp_path / "tasks") == []


@pytest.mark.parametrize(
    ("text", "include", "words"),
    [
        ("dataset_kwargs: {data_files: my.jsonl}", "_base_yaml", r"_base_yaml: data .*Write .*/tasks/my\.jsonl"),
        ("include: gone_yaml", "_base_yaml", "_base_yaml: include gone_yaml does not exist.*Mount it"),
        ("include: mine.yaml", "_base_yaml", "include mine.yaml is included already.*loops"),
        ("include: [../tasks/_base_yaml]", "_base_yaml", "is included already"),
        ("include: ..", "_base_yaml", "include .. does not exist"),
        ("include: 3", "_base_yaml", r"include is no path \(3\)"),
        ("include: [", "_base_yaml", "_base_yaml is not valid YAML"),
    ],
)
def test_an_included_file_that_lm_eval_could_not_read_is_rejected(base, text, include, words):
    with pytest.raises(BadInput, match=words):
        base(text, include)
