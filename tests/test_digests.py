"""Digests: the same for the same content in any order, another for any other content."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from halos_eval.digests import digest_file, digest_files, digest_json, fingerprint

DOCUMENTS = st.dictionaries(st.text("ab", max_size=2), st.integers(0, 3) | st.text("ab", max_size=2), max_size=3)


@given(DOCUMENTS)
def test_the_order_of_keys_does_not_matter(document):
    assert digest_json(dict(reversed(document.items()))) == digest_json(document)


@given(DOCUMENTS, DOCUMENTS)
def test_another_document_has_another_digest(one, other):
    assert (digest_json(one) == digest_json(other)) == (one == other)
    assert (fingerprint(one) == fingerprint(other)) == (one == other)


def test_a_fingerprint_is_that_of_canonical_json():
    text = '{"stage":"harness","é":[1,null,true]}'
    assert fingerprint({"é": [1, None, True], "stage": "harness"}) == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_a_file(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    assert digest_file(tmp_path / "a") == hashlib.sha256(b"x" * 100_000).hexdigest()


def test_files(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name)
    before = digest_files(tmp_path, ["a", "b"])
    assert digest_files(tmp_path, ["b", "a"]) == before
    assert digest_files(tmp_path, ["a"]) != before
    (tmp_path / "a").write_text("b")
    (tmp_path / "b").write_text("a")
    assert digest_files(tmp_path, ["a", "b"]) != before
