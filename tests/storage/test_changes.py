"""Notes on changed rows stay until a summary that considers them has settled."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from halos_eval.storage import changes, filesystem, layout
from halos_eval.storage.filesystem import Entry

NOW = datetime(2026, 1, 1, tzinfo=UTC)
OLD = Entry(0, NOW - changes.SETTLED - timedelta(seconds=1))


def many(entry, count=changes.MANY):
    return {f"a.{number}": entry for number in range(count)}


def test_considered_notes_are_removed_once_they_are_old_and_many():
    newest = {"b.1": Entry(0, NOW)}
    assert changes.settled(many(OLD) | newest, [*many(OLD), "b.1"]) == list(many(OLD))
    assert changes.settled(many(OLD) | newest, ["b.1"]) == []  # nobody considered them
    assert changes.settled(many(Entry(0, NOW)) | newest, many(OLD)) == []  # another process may write just now
    assert changes.settled(many(OLD, changes.MANY - 1) | newest, many(OLD)) == []
    assert changes.settled({}, []) == []


def test_a_checkpoint_is_noted_in_every_suite_that_has_plans(root):
    for suite in ("one", "two", "three"):
        filesystem.write_bytes(layout.plan_url(root, suite, "a/b.c"), b"{}")
    name = changes.note(root, "one", "a/b.c")
    changes.note_in_others(root, "one", "a/b.c")
    found = {suite: changes.read(root, suite) for suite in ("one", "two", "three", "none")}
    assert list(found["one"]) == [name]
    assert [len(one) for one in found.values()] == [1, 1, 1, 0]
    assert {changes.checkpoint_of(note) for one in found.values() for note in one} == {"a__b.c"}
    changes.remove(root, "one", [name])
    assert changes.read(root, "one") == {}
