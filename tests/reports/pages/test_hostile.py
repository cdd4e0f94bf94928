"""Texts of models, tags and failures are strangers': whatever they are, a page has only this project's markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halos_eval.reports.comparison import Comparison, Flip, TaskComparison, Verdict
from halos_eval.reports.pages import charts, checkpoint, document, leaderboard, pair, samples
from halos_eval.reports.pages.samples import Sample, Text
from halos_eval.reports.results import Missing
from tests.reports.pages.material import row

ATTACKS = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "</pre></article><iframe src=javascript:alert(1)>",
    "<!--<script>",
    "{{ 7 * 7 }}{% include 'style.css' %}",
    "</style><style>*{display:none}",
    "]]><![CDATA[",
    "a\x00b\u202eevil\ud800",
    "\u2028\u2029&lt;b&gt;",
]
TEXTS = st.one_of(
    st.sampled_from(ATTACKS), st.text(min_size=1, max_size=60), st.tuples(*[st.sampled_from(ATTACKS)] * 2).map("".join)
)


class Markup(HTMLParser):
    """The elements and attributes of a page."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page.decode())

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, tuple(sorted(name for name, _ in attrs))))


def hostile_pages(text):
    """All kinds of pages with ``text`` wherever a stranger's text can be."""
    rows = [
        row(number, tags={"method": text, text: text}, missing=(Missing(text, text), Missing("task_03", text)),
            warnings=(text,),
            judge=text, trial=text)
        for number in (1, 3)
    ]  # fmt: skip
    sample = Sample(text, [Text(text, text)], {text: 0.0}, "wrong", text, [text])
    task = TaskComparison(task=text, metric=text, verdict=Verdict.WORSE, reason=text, worse=(text,), test=text)
    flip = Flip(task=text, id=text, a=0, b=1, prompt=text, reference=text, answer_a=text, answer_b=text)
    compared = Comparison(
        a="m1", b="m2", suite="s", margin=0.01, verdict=Verdict.WORSE, differs=(text,), tasks=(task,), flips=(flip,)
    )
    common = {
        "checkpoint": "m1",
        "title": "t",
        "total": 1,
        "kept": 1,
        "flipped": 1,
        "names": ["a.html"],
        "up": "x.html",
    }
    return {
        "leaderboard": leaderboard.page("s", rows),
        "checkpoint": checkpoint.page("s", rows[1], {text: "a.html"}, {text: text}, [("m2", "worse", "b.html")]),
        "pair": pair.page(compared),
        "samples": document.render(
            "samples.html.jinja", samples=[sample], subsets=samples.counts([sample]), at=0, **common
        ),
    }  # fmt: skip


def data_of(page):
    """The data of the leaderboard, as the browser reads it."""
    return json.loads(re.search(rb'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)[1])


PLAIN = {name: Markup(page).found for name, page in hostile_pages("plain").items()}


@settings(max_examples=40)
@given(TEXTS)
def test_no_text_adds_or_removes_markup(text):
    for name, page in hostile_pages(text).items():
        assert Markup(page).found == PLAIN[name]


@pytest.mark.parametrize("text", ATTACKS)
def test_the_leaderboard_has_each_text_as_data(text):
    tags = data_of(leaderboard.page("s", [row(1, tags={"method": text})]))["rows"][0][2]
    assert tags == f"method={document.shown(text)}"


def test_charts_have_no_markup_of_tags():
    hostile = [row(number, tags={"method": text}) for number, text in enumerate(ATTACKS)]
    plain = [row(number, tags={"method": f"plain{number}"}) for number in range(len(ATTACKS))]
    drawn, expected = (charts.methods(rows, "avg").svg.encode() for rows in (hostile, plain))
    assert Markup(drawn).found == Markup(expected).found
    assert b"<script" not in drawn.lower()


@pytest.mark.parametrize("name", PLAIN)
def test_the_policy_allows_only_the_page_s_own_script_and_style(name):
    page = hostile_pages("plain")[name].decode()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1].replace("&#39;", "'")
    assert policy.startswith(
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; style-src 'sha256-"
    )
    assert "unsafe" not in policy
    contents = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    contents += re.findall(r'<script type="module">(.*?)</script>', page, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in contents]
    assert re.findall(r"'sha256-([^']*)'", policy) == digests
    markup = re.sub(r"<(style|script).*?</\1>", "", page, flags=re.DOTALL)
    assert not re.search(r' (style|on\w+)="', markup)
    assert not re.search(r'(src|href)="(https?:)?//', markup)


def test_a_long_answer_is_cut_with_the_number_of_characters():
    text = Text("Answer", "x" * (samples.LONGEST + 5))
    assert (len(text.start), text.cut) == (samples.LONGEST, 5)
