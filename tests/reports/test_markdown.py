"""Text of other sources in Markdown is never interpreted, in any output format; unmeasured numbers are empty."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from apprise.conversion import convert_between
from hypothesis import given
from hypothesis import strategies as st

from halos_eval.reports.markdown import code, first, number, table
from halos_eval.reports.results import Cell

HOSTILE = st.text(st.sampled_from("`|<>!&*_[]()#-~\\\n\r\t \"'@/:ab;{}%?=\u202e\x00")) | st.text()


def test_a_score_at_its_bound_has_a_bound_of_its_interval():
    assert number(Cell(100.0, 0.0, (99.525, 100.0)), 2) == "100.00 (≥ 99.53)"
    assert number(Cell(0.0, 0.0, (0.0, 0.475)), 1) == "0.0 (≤ 0.5)"
    assert number(Cell(1.0, 0.0), 2) == "1.00"


class Page(HTMLParser):
    """The tags of a page, and the words in its code spans."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.code, self._in_code = [], [], False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, attrs))
        if tag == "code":
            self.code.append("")
        self._in_code = self._in_code or tag == "code"

    def handle_endtag(self, tag):
        self._in_code = self._in_code and tag != "code"

    def handle_data(self, data):
        if self._in_code:
            self.code[-1] += data


@given(HOSTILE)
def test_in_mail_words_are_words(text):
    span = code(text)
    page = Page(convert_between("markdown", "html", f"**Heading**\n\n- {span}: {span}\n"))
    assert [tag for tag, _ in page.tags] == ["p", "strong", "ul", "li", "code", "code"]
    assert page.code == [span[1:-1]] * 2


@given(HOSTILE, HOSTILE)
def test_a_cell_stays_a_cell(one, two):
    page = Page(convert_between("markdown", "html", table(["a", "b"], [[code(one), ""], [code(two), ""]])))
    assert [tag for tag, _ in page.tags].count("tr") == 3
    assert [tag for tag, _ in page.tags].count("td") == 4
    assert page.code == [code(one)[1:-1], code(two)[1:-1]]


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("llama3-8b_kto/step-4", "`llama3-8b_kto/step-4`"),
        ("a `b`\n| c\x00", "`a 'b' ¦ c`"),
        ("", "`?`"),
        ("x" * 301, f"`{'x' * 299}…`"),
        ("\u202eevil", "`evil`"),
    ],
)
def test_a_code_span(text, span):
    assert code(text) == span


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (Cell(0), "0.00"),
        (Cell(0.0, 0.0), "0.00"),  # no answer was right: the error is not 0 but unknown
        (Cell(26.504, 1.25), "26.50 ± 1.25"),
        (None, ""),
    ],
)
def test_a_number(cell, text):
    assert number(cell, 2) == text


def test_a_table_reads_as_text():
    assert table(["name", "avg"], [["a", "0.5000"], ["longer", ""]]).splitlines() == [
        "| name   | avg    |",
        "| ------ | ------ |",
        "| a      | 0.5000 |",
        "| longer |        |",
    ]


def test_the_first_of_many():
    assert first(["a", "b"], 2) == "a, b"
    assert first(["a", "b", "c", "d"], 2) == "a, b, and 2 more"
    assert first([], 2) == ""
