"""What people read: table, terminal, message, pages and errors. Texts of strangers are only text."""

from __future__ import annotations

import csv
import io
import json
import re
from types import SimpleNamespace

import pandas as pd
import pytest
from apprise import Apprise, NotifyFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.table import Table

from halos_eval.cli import main
from halos_eval.errors import EvaluationFailed
from halos_eval.planning.selection import Selection
from halos_eval.processes import last_error, last_line
from halos_eval.reports.message import compose
from halos_eval.reports.results import Cell, Missing, Row
from halos_eval.reports.scores import encoded
from halos_eval.reports.table import cells_by_column, csv_of
from halos_eval.reports.terminal import PlainConsole, Summary
from halos_eval.untrusted import FORMULA, as_cell, whole
from tests.hostile.values import ATTACKS, BATCH, visible
from tests.reports.pages.test_hostile import PLAIN, Markup, hostile_pages


def rows_of(texts):
    """Two rows with the texts wherever a log, a judge, a tag or a failure can bring one."""
    texts = [whole(text) for text in texts]  # halves of characters end where files are read
    first, second, judge, version, label, trial, gate, *rest = texts
    return [
        Row(
            name, {f"{rest[0]}-acc": Cell(0.5, 0.1), f"{rest[1]}-acc": None}, judge=judge, trial=trial, gate=gate,
            missing=(Missing(rest[2], rest[3]), Missing(rest[4], rest[5])), warnings=(rest[6], rest[7]),
            judge_versions=(version,), judges={label: rest[8]}, tags={rest[9]: rest[10]}, counts={rest[11]: 3},
        )
        for name in (first, second)
    ]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(BATCH)
def test_the_csv_has_every_text_in_its_cell_and_no_formula(texts):
    rows = rows_of(texts)
    header, lines = cells_by_column(rows)
    written = csv_of(rows).decode()
    read = list(csv.reader(io.StringIO(written, newline="")))
    assert len(read) == 1 + len(rows)
    for cells, line in zip(read[1:], lines, strict=True):
        for column, cell in zip(header, cells, strict=True):
            text = line.get(column, "")
            if isinstance(text, str):
                assert cell == as_cell(text)
                assert cell.removeprefix("'") in {text, text.removeprefix("'")} or "\r" in text
    for line in read:
        assert not [cell for cell in line if cell.startswith(FORMULA)]
    table = pd.read_csv(io.StringIO(written), dtype=str, keep_default_na=False, header=None, engine="python")
    assert table.to_numpy().tolist() == read


def printed(*renderables, width=80):
    """What a console shows."""
    file = io.StringIO()
    console = PlainConsole(file=file, width=width, force_terminal=False)
    for one in renderables:
        console.print(one, soft_wrap=isinstance(one, str))
    return file.getvalue()


@settings(max_examples=50, deadline=None)
@given(BATCH)
def test_a_terminal_gets_no_control_characters(texts):
    table = Table(*texts[:3], title=texts[3])
    table.add_row(*texts[4:7])
    assert visible(printed(Summary(rows_of(texts), texts[0]), table, *texts))


def test_a_terminal_gets_no_emoji_and_no_markup():
    assert printed(":tada: [red]x[/red]") == ":tada: [red]x[/red]\n"


@settings(max_examples=60)
@given(BATCH)
def test_an_error_is_one_line_that_a_log_reader_finds(texts):
    for text in texts:
        error, output = EvaluationFailed(text), io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(main, "sys", SimpleNamespace(stderr=output))
            assert main._fail(error) == 7
        line = output.getvalue()
        assert line.endswith("\n")
        assert visible(line)
        assert len(line.splitlines()) == 1
        assert last_error(f"{text}\n{line}").startswith("halos-eval: EvaluationFailed:")


@settings(max_examples=60)
@given(BATCH)
def test_the_reason_in_any_log_is_one_line(texts):
    for log in ("\n".join(texts), "\r\n".join(texts), "".join(texts)):
        for found in (last_error(log), last_line(log)):
            assert len(found) <= 500
            assert visible(found.replace("\t", " "))
            assert "\n" not in found


def message(texts):
    """The morning message about skipped checkpoints with such names and reasons."""
    pairs = zip(map(whole, texts[::2]), map(whole, texts[1::2]), strict=True)
    return compose("night", Selection(left_out=dict(pairs)), {}, "/store")


SPAN = re.compile(r"`[^`\n]*`")


@settings(max_examples=60)
@given(BATCH)
def test_the_message_has_strangers_texts_only_in_code_spans(texts):
    body = message(texts).body
    outside = SPAN.sub("", body)
    assert not re.search(r"[`<>@\[\]]", outside)
    assert "http" not in outside
    assert not re.search(r"[<>@|]", "".join(SPAN.findall(body)))
    assert visible(body)


@pytest.mark.parametrize(
    "service",
    ["slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/#c", "discord://1234567890/abcdefgh?format=markdown"],
)
def test_no_text_mentions_or_links_in_chat(service, monkeypatch):
    sent = []

    def post(*args, **options):
        sent.append(json.dumps([options.get("data"), options.get("json")], default=str))
        return SimpleNamespace(status_code=200, content=b"ok", text="ok", headers={}, request=None)

    monkeypatch.setattr("requests.Session.request", post)
    texts = [*ATTACKS, "<!channel> @everyone", "!here>", "@U024BE7LH>", "https://evil.example|click>", "<@&123>"]
    for start in range(0, len(texts) - 1, 2):
        services = Apprise()
        assert services.add(service)
        told = message([f"{text}" for text in texts[start : start + 2]])
        assert services.notify(told.body, told.title, body_format=NotifyFormat.MARKDOWN)
    assert len(sent) >= len(texts) // 2
    for payload in sent:
        assert not re.search(r"<[!@#]|<https?:|<mailto:|allow_mentions|@(everyone|here|U0)", payload)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(ATTACKS), min_size=2, max_size=4).map("".join).filter(bool))  # without a text, no entry
def test_no_combination_adds_markup_to_a_page(text):
    for name, page in hostile_pages(text).items():
        assert Markup(page).found == PLAIN[name]


def test_all_scores_have_no_formula_either():
    frame = pd.DataFrame({"checkpoint": ["=1+1", "kto", None], "value": [-0.5, 1.0, None]})
    assert encoded(frame, "scores.csv").decode() == "checkpoint,value\n'=1+1,-0.5\nkto,1.0\n,\n"
