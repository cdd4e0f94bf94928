"""The sample stage without vLLM: all answers are in the journal, so that it only writes the output."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from halos_eval.checkpoints import weights
from halos_eval.checkpoints.known import carried
from halos_eval.checkpoints.weights import inspect
from halos_eval.data import prompts
from halos_eval.digests import digest_bytes
from halos_eval.errors import BadInput, EvaluationFailed
from halos_eval.stages import sample as stage
from halos_eval.stages.engine import Finished, Sample
from halos_eval.stages.prompt import Prompting
from halos_eval.stages.sample import SampleConfig, sample, sample_identity
from halos_eval.storage.journal import Journal
from halos_eval.storage.records import read_record
from tests.doubles import make_checkpoint, outputs_in, result_of, write_safetensors
from tests.doubles.engine import Answering
from tests.doubles.tokenizer import Tokenizer

PROMPTS = prompts.load("demo", "prompts").rows


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.setattr("halos_eval.stages.tools.check_installed", lambda *_: None)
    folder = make_checkpoint(tmp_path / "kto" / "FINAL")
    return {"model": str(folder), "prompts": "demo", "output": str(tmp_path / "out" / "outputs.json")}


def identity(options):
    config = SampleConfig(**options)
    checkpoint = inspect(config.model).reference(config.name, config.model)
    return sample_identity(config, config.prompts, config.chat_template, checkpoint).at("")


def answer(options, texts):
    """Journal answers like an earlier run that was killed."""
    config = SampleConfig(**options)
    parts = f"{config.output.removesuffix('.json')}.parts"
    with Journal(identity(options).journal(parts, config.force)) as journal:
        for row, text in zip(PROMPTS, texts, strict=False):
            samples = [{"text": text, "tokens": 3, "finish": "stop" if text else "length"}] * config.samples_per_prompt
            journal.add(stage._key(row), {"prompt_tokens": 2, "samples": samples})


def test_a_resumed_run_writes_what_alpaca_eval_reads(options, tmp_path):
    answer(options, ["", *["four"] * 11])
    record = sample(SampleConfig(**options))
    rows = outputs_in(tmp_path / "out")
    assert [row["instruction"] for row in rows] == [prompt["instruction"] for prompt in PROMPTS]
    assert [row["output"] for row in rows] == ["", *["four"] * 11]
    assert rows[1] | {"instruction": ""} == {
        "instruction": "", "output": "four", "generator": "kto", "dataset": "demo", "prompt_id": 1, "sample_id": 0,
        "type": "sample",
    }  # fmt: skip
    digest = digest_bytes(result_of(tmp_path / "out" / "outputs.record.json", "outputs.json").read_bytes())
    assert record.files == {f"outputs-{digest[:16]}.json": digest}
    assert (record.coverage.attempted, record.coverage.scored) == (12, 12)
    assert record.details == {"avg_length": 44 / 12, "cut_at_max_tokens": 1, "empty": 1}
    assert (record.usage.prompt_tokens, record.usage.completion_tokens, record.usage.resumed) == (24, 36, 1)
    assert record.scores == ()
    assert read_record(str(tmp_path / "out" / "outputs.record.json")) == record
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*record.files, "outputs.record.json"}


def test_several_samples_of_a_prompt(options, tmp_path):
    options["samples_per_prompt"] = 2
    answer(options, ["x"] * 12)
    record = sample(SampleConfig(**options))
    rows = outputs_in(tmp_path / "out")
    assert [(row["prompt_id"], row["sample_id"]) for row in rows[:3]] == [(0, 0), (0, 1), (1, 0)]
    assert (record.coverage.attempted, record.coverage.scored) == (24, 24)


def test_a_finished_run_is_not_touched(options, tmp_path):
    answer(options, ["x"] * 12)
    first = sample(SampleConfig(**options))
    before = result_of(tmp_path / "out" / "outputs.record.json", "outputs.json").stat().st_mtime_ns
    assert sample(SampleConfig(**options)) == first
    assert result_of(tmp_path / "out" / "outputs.record.json", "outputs.json").stat().st_mtime_ns == before


def test_a_forced_run_takes_nothing_from_an_earlier_one(options, tmp_path):
    answer(options, ["old"] * 12)
    answer(options | {"force": True}, ["new"] * 12)  # by an earlier try of the forced run
    sample(SampleConfig(**options, force=True))
    assert {row["output"] for row in outputs_in(tmp_path / "out")} == {"new"}
    assert not (tmp_path / "out" / "outputs.parts").exists()


def test_a_name_of_ones_own(options):
    answer(options, ["x"] * 12)
    assert sample(SampleConfig(**options, name="mine")).checkpoint.name == "mine"


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"temperature": 0},
        {"stop": ("###",)},
        {"max_tokens": 5},
        {"reproducible": True},
        {"chat_template": "chatml"},
    ],
    ids=str,
)
def test_another_way_of_sampling_is_another_job(options, change):
    assert identity(options | change).fingerprint != identity(options).fingerprint


@pytest.mark.parametrize(
    "change",
    [{"output": "/x"}, {"name": "x"}, {"tensor_parallel_size": 2}, {"enforce_eager": True}, {"force": True}],
    ids=str,
)
def test_another_place_is_the_same_job(options, change):
    assert identity(options | change).fingerprint == identity(options).fingerprint


def test_other_weights_and_other_prompts_are_another_job(options, tmp_path):
    before = identity(options)
    (tmp_path / "prompts.json").write_text('[{"instruction": "a"}]')
    assert identity(options | {"prompts": str(tmp_path / "prompts.json")}).fingerprint != before.fingerprint
    write_safetensors(tmp_path / "kto" / "FINAL" / "model.safetensors", b"other   ")
    assert identity(options).fingerprint != before.fingerprint


def test_no_prompt_is_cut():
    prompting = Prompting(Tokenizer(), "T{{ messages[0].content }}")
    assert stage._tokenize(prompting, {"instruction": "a" * 8}, 10) == prompting.encode("T" + "a" * 8)
    with pytest.raises(BadInput, match=r"too long \(10 tokens: 'bbbbbbbbb'\); expected fewer than 10"):
        stage._tokenize(prompting, {"instruction": "b" * 9}, 10)


def test_the_record_says_how_the_prompts_of_a_killed_run_were_made(options):
    answer(options, ["x"] * 12)
    with Journal(identity(options).journal(f"{options['output'].removesuffix('.json')}.parts", False)) as journal:
        journal.add(stage.PROMPTING, {"prompt:bos": "<s>"})
    record = sample(SampleConfig(**options))
    assert record.provenance.inputs["prompt:bos"] == "<s>"
    assert record.coverage.attempted == record.coverage.scored == 12


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": -1},
        {"top_p": 0},
        {"top_p": 1.1},
        {"max_tokens": 0},
        {"stop": "###"},
        {"stop": ("",)},
        {"temp": 1},
    ],
)
def test_what_is_wrong_in_the_options(change):
    with pytest.raises(ValidationError):
        SampleConfig(model="m", **change)


class Engine(Answering):
    """Answers ``text`` to everything, and calls ``sampling`` when it has."""

    def __init__(self, text, sampling):
        super().__init__(Tokenizer(chat_template="{{ messages[0]['content'] }}"))
        self.text, self.sampling = text, sampling

    def finished(self, asks, at_once=None):
        yield from super().finished(asks, at_once)
        self.sampling()

    def answer(self, ask):
        return Finished(ask.key, 1, samples=(Sample(self.text, 1, "stop"),) * ask.params["n"])


def engine(loading=lambda: None, sampling=lambda: None, text="four"):
    """What loads an engine that answers ``text``."""

    def load(_weights, _options):
        loading()
        return Engine(text, sampling)

    return load


@pytest.mark.parametrize("when", ["loading", "sampling"])
def test_weights_that_are_saved_again_get_no_record(options, tmp_path, when):
    def save():
        write_safetensors(tmp_path / "kto" / "FINAL" / "model.safetensors", b"trained longer")

    with pytest.raises(BadInput, match=r"FINAL was saved again .* none are recorded\. When it is saved, trigger"):
        sample(SampleConfig(**options), engine(**{when: save}))
    out = tmp_path / "out"
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["outputs.failure.json"]
    record = sample(SampleConfig(**options), engine())
    assert record.checkpoint.digest == inspect(options["model"]).digest


def test_weights_that_are_copied_again_are_the_same(options, tmp_path):
    path = tmp_path / "kto" / "FINAL" / "model.safetensors"
    load = engine(loading=lambda: path.write_bytes(path.read_bytes()))
    assert sample(SampleConfig(**options), load).coverage.scored == 12


def test_the_digest_of_the_plan_saves_reading_the_weights_but_not_noticing_a_change(options, tmp_path, monkeypatch):
    folder = tmp_path / "kto" / "FINAL"
    found = inspect(options["model"])
    known = carried(found.folders, None)
    with monkeypatch.context() as patch:
        patch.setattr(weights, "digest_files", lambda *_: pytest.fail("weights were read"))
        record = sample(SampleConfig(**options, known=known, location="s3://bucket/kto"), engine())
    assert (record.checkpoint.digest, record.checkpoint.location) == (found.digest, "s3://bucket/kto")
    load = engine(loading=lambda: write_safetensors(folder / "model.safetensors", b"trained longer"))
    with pytest.raises(BadInput, match="was saved again while it was evaluated"):
        sample(SampleConfig(**options, known=known, force=True), load)


@pytest.mark.parametrize("answers", ["sampled", "resumed"])
def test_nothing_but_empty_answers_is_a_failure_and_sampled_again(options, tmp_path, answers):
    if answers == "resumed":
        answer(options, [""] * 12)
    with pytest.raises(EvaluationFailed, match=r"all 12 answers of \S+ are empty; none are recorded"):
        sample(SampleConfig(**options), engine(text=""))
    assert not list((tmp_path / "out").glob("outputs-*"))
    assert read_record(str(tmp_path / "out" / "outputs.record.json")) is None
    assert sample(SampleConfig(**options), engine()).details["empty"] == 0


def test_limits_of_the_model_are_checked_before_it_is_loaded(options, tmp_path):
    config = {"tie_word_embeddings": True, "num_attention_heads": 9, "max_position_embeddings": 64}
    (tmp_path / "kto" / "FINAL" / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match="9 attention heads"):
        sample(SampleConfig(**options, tensor_parallel_size=2))
    with pytest.raises(BadInput, match="expected at most 64"):
        sample(SampleConfig(**options, max_model_len=65))
