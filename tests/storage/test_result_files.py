"""Result files: a name for each content, which only result files have."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halos_eval.digests import digest_bytes
from halos_eval.storage import filesystem, result_files
from halos_eval.storage.result_files import digest_in, named, plain_name

PLAIN = "outputs.json", "results.json", "samples/mmlu_(a).b-1.jsonl.gz", "a-0123456789abcdef.json"


@given(st.sampled_from(PLAIN), st.binary())
def test_a_name_tells_the_file_and_the_digest(plain, data):
    digest = digest_bytes(data)
    name = named(plain, digest)
    assert plain_name(name) == plain
    assert digest_in(name) == digest[:16]


def test_a_file_is_never_replaced_by_another_content(root):
    one = result_files.write(root, {"outputs.json": b"one", "samples/task.jsonl.gz": b"rows"})
    two = result_files.write(root, {"outputs.json": b"two"})
    assert [name.partition("-")[0] for name in (*one, *two)] == ["outputs", "samples/task", "outputs"]
    for name, digest in {**one, **two}.items():
        assert digest_bytes(filesystem.read_bytes(f"{root}/{name}")) == digest


@pytest.mark.parametrize(
    "name", ["outputs.json", "record.json", "outputs-0123456789abcde.json", "claims/000001.json", "parts/f/1-ab.jsonl"]
)
def test_other_files_have_no_digest_in_their_names(name):
    assert digest_in(name) is None
    assert plain_name(name) == name
