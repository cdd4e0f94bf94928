"""Check docs, docstrings, comments and messages for words that make readers stop; part of `make lint`.

Changes nothing. Prints FILE:LINE, the words found and the better ones, and exits with 1 if there are any. In Python
files only comments and strings are read. With file names as arguments it reads those only.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = ["*.md", "*.py", "*.yaml", "*.tpl", "*.txt", "Makefile", "*/Dockerfile"]
EXEMPT = {"tests/check_words.py", "tests/test_check_words.py"}
# Each pattern is matched without regard to case; a space in it also matches a line break.
WORDS = {
    r"\bdoors?\b": "entry point; or name the function",
    r"\brooms?\b": "package, section; or say 'fits', 'capacity'",
    r"\bshut in\b": "isolated, sandboxed",
    r"\bnonsense\b": "dummy answers, invalid",
    r"\b(cannot|could not|may not) be had\b|\bto be had\b": "is unavailable",
    r"\b(is|are|be|been|was|were) told\b|\bnobody (is|was) told\b": "is reported, is logged, receives a message",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bhalf[- ]written\b": "incomplete",
    r"\bnothing to go by\b": "no history",
    r"\b(make|makes|made) up for\b": "backfill",
    r"\bput together\b": "merged",
    r"\btr(y|ies|ied) again\b": "retry, retried",
    r"\bfirst (one )?that fits\b": "first that matches",
    r"\byields? to\b": "comes after",
    r"\bwakes?\b": "triggers",
    r"\bwalk(s|ed)? through\b": "traverse, execute permission on",
    r"\b(last|own) words\b": "last log line",
    r"\bwants? to know who asks\b": "requires authentication",
    r"\b(is|are|be|ends?|ended|as) (red|green)\b": "fails, succeeds",
    r"\banew\b": "again",
    r"\bpushe?s? out\b": "preempts",
    r"\bpeople are told\b": "the message says",
    r"(?-i:(?:^|[.:;]\s)What (?:is|was|has|cannot)\b)(?![^.]*\?)": "name the thing instead of 'What is ...'",
    # The string "annotator" alone is allowed: it is a key of records and fingerprints.
    r"(?!\Aannotator[\"']\Z)\bannotators?\b(?![^\n]*alpaca_?eval)": "judge",
}
PATTERNS = {re.compile(words.replace(" ", r"\s+(?:#\s*)?"), re.I | re.M): better for words, better in WORDS.items()}


def complaints(name: str, text: str) -> Iterator[str]:
    """Yield a line for each banned word in ``text``, the content of the file ``name``."""
    pieces = _prose(text) if name.endswith(".py") else [(1, text)]
    for start, piece in pieces:
        for pattern, better in PATTERNS.items():
            for found in pattern.finditer(piece):
                line = start + piece.count("\n", 0, found.start())
                yield f"{name}:{line}: {' '.join(found[0].split())!r}: write {better}"


def _prose(source: str) -> Iterator[tuple[int, str]]:
    """Yield the comments and strings of a Python file with their first lines."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in {tokenize.COMMENT, tokenize.STRING}:
            yield token.start[0], token.string.lstrip("#\"'rfbRFB ")


def main(names: list[str]) -> int:
    """Check the named files, or all tracked ones; return the exit code."""
    if not names:
        command = ["git", "ls-files", "--", *FILES]
        names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    found = [
        line
        for name in names
        if name not in EXEMPT
        for line in complaints(name, (ROOT / name).read_text(encoding="utf-8"))
    ]
    for line in found:
        sys.stdout.write(f"{line}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
