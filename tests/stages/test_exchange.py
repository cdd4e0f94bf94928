"""How a judge and its server find each other, and notice that the other has ended or was killed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from halos_eval.errors import DataUnavailable, EvaluationFailed, Incomplete
from halos_eval.stages import exchange as module
from halos_eval.stages.exchange import Address, Exchange

ADDRESS = Address(url="http://127.0.0.1:9/v1", key="secret", vllm="1", gpus="none")
HOLDS = (
    "import sys, time; from pathlib import Path; from halos_eval.stages.exchange import Exchange\n"
    "with Exchange(Path(sys.argv[1])).present('server'):\n"
    "    print('here', flush=True)\n"
    "    time.sleep(600)"
)


@pytest.fixture
def exchange(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    return Exchange(tmp_path / "new")


def test_a_partner_is_absent_then_runs_then_has_ended(exchange):
    assert exchange.state("judge") == "absent"
    with exchange.present("judge"):
        assert (exchange.state("judge"), exchange.state("server")) == ("running", "absent")
    assert exchange.state("judge") == "ended"


def test_a_killed_partner_has_ended(exchange):
    with subprocess.Popen([sys.executable, "-c", HOLDS, exchange.folder], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"here\n"
        assert exchange.state("server") == "running"
        process.kill()
    with pytest.raises(Incomplete, match="the judge's server was killed"):
        exchange.wait()


def test_the_judge_gets_the_address(exchange):
    with exchange.present("server"):
        exchange.announce(ADDRESS)
        assert exchange.wait() == ADDRESS
    (file,) = exchange.folder.glob("address.json")
    assert file.stat().st_mode & 0o77 == 0
    assert "secret" not in repr(ADDRESS)


def test_the_reason_of_a_server_that_ended(exchange, caplog):
    with exchange.present("server"):
        exchange.log.write_text("loading\nOutOfMemoryError: no more\n")
        exchange.report(EvaluationFailed("it ended: no more"))
    with pytest.raises(EvaluationFailed, match=r"^it ended: no more$"):
        exchange.wait()
    assert "OutOfMemoryError: no more" in caplog.text


def test_the_reason_of_a_server_that_never_started(exchange):
    exchange.folder.mkdir()
    exchange.report(DataUnavailable("no such program"))
    with pytest.raises(DataUnavailable, match="no such program"):
        exchange.check()


def test_a_server_that_died_before_it_took_its_lock(exchange, monkeypatch):
    monkeypatch.setattr(module, "ABSENT_SECONDS", 0.05)
    with exchange.present("judge"), pytest.raises(Incomplete, match=r"has not begun after 0 s.*log of the container"):
        exchange.wait()


def test_a_server_that_begins_late_is_waited_for(exchange, monkeypatch):
    monkeypatch.setattr(module, "ABSENT_SECONDS", 0.0)
    with exchange.present("server"), pytest.raises(Incomplete, match="does not answer"):
        exchange.wait(seconds=0.05)


def test_a_server_that_does_not_answer(exchange):
    with exchange.present("server"), pytest.raises(Incomplete, match=r"does not answer after 0 s \(running\)"):
        exchange.wait(seconds=0.05)
    # What it announced before it ended is of no use.
    exchange.announce(ADDRESS)
    with pytest.raises(Incomplete, match="was killed"):
        exchange.wait()
