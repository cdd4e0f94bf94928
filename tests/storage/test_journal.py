"""The journal: saved items survive a kill, and no file is incomplete."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halos_eval.errors import StoreError
from halos_eval.storage import filesystem
from halos_eval.storage.journal import Journal

KEYS = st.sampled_from(["a", "b", "c"])
# Texts that models write: other alphabets, line separators that are not \n, half of a surrogate pair.
TEXTS = st.text(st.characters() | st.sampled_from("\n\r\x0b\x1c\x85\u2028\u2029\ud83d\0"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS, st.lists, max_leaves=4
)
STEPS = st.lists(
    st.tuples(st.just("add"), KEYS, VALUES) | st.sampled_from([("save",), ("kill",), ("end",)]), max_size=20
)


@given(steps=STEPS)
def test_what_was_saved_stays_whatever_comes_between(steps):
    url = f"memory://{uuid4()}"
    journal = Journal(url, seconds=1e9)
    pending, saved = [], {}
    for step, *item in steps:
        if step == "add":
            journal.add(*item)
            pending.append(item)
            continue
        if step == "save":
            journal.save()
        if step == "end":
            journal.__exit__(None, None, None)
        if step in {"save", "end"}:
            for key, value in pending:
                saved.setdefault(key, value)
        if step in {"kill", "end"}:
            journal = Journal(url, seconds=1e9)
        pending.clear()
        assert journal.load() == saved
    filesystem.delete(url)


def test_an_item_is_saved_after_the_given_time(tmp_path):
    Journal(str(tmp_path), seconds=0).add("a", 1)
    assert Journal(str(tmp_path)).load() == {"a": 1}
    Journal(str(tmp_path), seconds=1e9).add("b", 1)
    assert Journal(str(tmp_path)).load() == {"a": 1}


def test_an_error_saves_what_is_pending(tmp_path):
    def work():
        with Journal(str(tmp_path), seconds=1e9) as journal:
            journal.add("a", 1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert Journal(str(tmp_path)).load() == {"a": 1}


def test_a_full_disk_loses_nothing_that_was_there(tmp_path, monkeypatch):
    journal = Journal(str(tmp_path), seconds=1e9)
    journal.add("a", 1)
    journal.save()
    journal.add("b", 2)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(StoreError):
            journal.save()
    assert journal.load() == {"a": 1}
    assert len(list(tmp_path.iterdir())) == 1
    journal.save()  # once there is space again
    assert journal.load() == {"a": 1, "b": 2}


def test_every_file_is_whole_lines_of_json(tmp_path):
    journal = Journal(str(tmp_path))
    for number in range(5):
        journal.add(str(number), "a\u2028b")
        journal.save()
    parts = sorted(tmp_path.iterdir())
    assert len(parts) == 5
    for number, part in enumerate(parts):
        text = part.read_text(encoding="ascii")
        assert text.endswith("\n")
        assert json.loads(text) == [str(number), "a\u2028b"]


def test_nothing_pending_writes_nothing(tmp_path):
    Journal(str(tmp_path)).save()
    assert not list(tmp_path.iterdir())
