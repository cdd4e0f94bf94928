"""The check of words finds what it should, where it is, and reads only prose."""

from __future__ import annotations

import pytest

from tests.check_words import complaints


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("a.md", "one\nMend it.", ["a.md:2"]),
        ("a.md", "It cannot be\nhad here.", ["a.md:1"]),
        ("a.yaml", "key: 1 # it was\n# told\n", ["a.yaml:1"]),
        ("a.md", "What is finished is kept.", ["a.md:1"]),
        ("a.py", '"""The one door."""\nx = 1  # nonsense\n', ["a.py:1", "a.py:2"]),
        ("a.py", 'raise E(f"{x}: no room")\n', ["a.py:1"]),
    ],
)
def test_found(name, text, where):
    assert [line.partition(": ")[0] for line in complaints(name, text)] == where


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.md", "A recommended headroom. What is a checkpoint?"),
        ("a.md", "The annotators of alpaca_eval."),
        ("a.py", "from a import door\nroom = door.told\n"),
        ("a.py", 'fixed = "retried"  # Airflow retries it\n'),
    ],
)
def test_not_found(name, text):
    assert list(complaints(name, text)) == []
