"""Task files of the lab: whatever data they name is part of the fingerprint, or is rejected."""

from __future__ import annotations

import pytest

from halos_eval.config.suite import HarnessSettings
from halos_eval.errors import BadInput
from halos_eval.stages.harness.options import harness_identity
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
