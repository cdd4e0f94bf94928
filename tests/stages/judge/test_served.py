"""The judge stage's side of a judge that is served: weights, waiting, and the reason if the server ends."""

from __future__ import annotations

import os

import pytest

from halos_eval.config.served_judge import ServedJudge
from halos_eval.errors import BadInput, EvaluationFailed, Incomplete
from halos_eval.stages.exchange import Address, Exchange
from halos_eval.stages.judge.options import JudgeConfig
from halos_eval.stages.judge.served import Served, present
from tests.doubles import make_checkpoint, write_safetensors

ADDRESS = Address(url="http://127.0.0.1:9/v1", key="secret", vllm="0.32.0+cpu", gpus="none")


@pytest.fixture(autouse=True)
def variables(monkeypatch):
    """The variables that the stage changes for its own process."""
    monkeypatch.setenv("NO_PROXY", "s3.example.org")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def config(tmp_path):
    """``config(**options)`` asks a judge that is a folder."""

    def config(exchange=tmp_path / "exchange", **options):
        model = str(make_checkpoint(tmp_path / "judges" / "prometheus" / "FINAL"))
        judge = str(ServedJudge(model=model, **options))
        return JudgeConfig(outputs="o", output_dir="d", judge=judge, exchange=exchange and str(exchange))

    return config


@pytest.fixture
def server(tmp_path):
    """The exchange of a server that answers."""
    exchange = Exchange(tmp_path / "exchange")
    with exchange.present("server"):
        exchange.announce(ADDRESS)
        yield exchange


def test_without_the_servers_folder_nothing_is_asked(config):
    with pytest.raises(BadInput, match="--exchange is not given"):
        present(config(exchange=None))


def test_a_judge_by_name_needs_no_folder():
    with present(JudgeConfig(outputs="o", output_dir="d", judge="demo")):
        pass


def test_the_server_knows_that_the_stage_runs(config, tmp_path):
    with present(config()):
        assert Exchange(tmp_path / "exchange").state("judge") == "running"


def test_the_endpoint_is_the_server_with_its_key(config, server):
    served = Served(config(), None)
    with served.endpoint() as endpoint:
        assert endpoint.base_url == ADDRESS.url
        assert endpoint.key.get_secret_value() == "secret"
        # The address is another one at each start: it is neither in the record nor in the names of kept answers.
        assert "127.0.0.1" not in endpoint.place
        assert endpoint.place.startswith("vLLM serving prometheus (")
        assert os.environ["NO_PROXY"] == "s3.example.org,127.0.0.1"
    assert served.title == "prometheus"
    assert served.inputs == {"judge_vllm": "0.32.0+cpu", "judge_gpus": "none"}


def test_answers_of_other_weights_or_settings_are_not_shared(config, server, tmp_path):
    def place(**options):
        with Served(config(**options), None).endpoint() as endpoint:
            return endpoint.place

    assert place() == place(profile="large")
    places = [place(), place(dtype="float32"), place(max_model_len=9)]
    config()
    write_safetensors(tmp_path / "judges" / "prometheus" / "FINAL" / "model.safetensors", b"\x01" * 8)
    choice = ServedJudge(model=str(tmp_path / "judges" / "prometheus" / "FINAL"))
    other = JudgeConfig(outputs="o", output_dir="d", judge=str(choice), exchange=str(tmp_path / "exchange"))
    with Served(other, None).endpoint() as endpoint:
        places.append(endpoint.place)
    assert len(set(places)) == 4


def test_the_servers_reason_replaces_that_of_the_requests(config, tmp_path):
    exchange = Exchange(tmp_path / "exchange")
    with exchange.present("server"):
        exchange.announce(ADDRESS)
        context = Served(config(), None).endpoint()
        context.__enter__()
        exchange.report(EvaluationFailed("out of memory"))
    error = Incomplete("cannot be reached")
    with pytest.raises(EvaluationFailed, match="out of memory"):
        context.__exit__(Incomplete, error, None)


def test_requests_that_fail_at_a_living_server_stay_what_they_are(config, server):
    with pytest.raises(Incomplete, match="no answer"), Served(config(), None).endpoint():
        raise Incomplete("no answer")


def test_weights_that_are_saved_again_while_they_judge(config, server, tmp_path):
    served = Served(config(), None)
    with pytest.raises(BadInput, match="saved again"), served.endpoint():
        write_safetensors(tmp_path / "judges" / "prometheus" / "FINAL" / "model.safetensors", b"\x01" * 8)
