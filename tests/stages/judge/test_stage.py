"""The judge stage without alpaca_eval: its inputs, its identity, and its reports."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from halos_eval.config.judge import load_judge
from halos_eval.data import prompts
from halos_eval.digests import digest_bytes
from halos_eval.errors import BadInput, EvaluationFailed, JudgeRefused
from halos_eval.stages.judge import stage
from halos_eval.stages.judge.alpaca_eval import TooFewReadError, check_read
from halos_eval.stages.judge.options import JudgeConfig, judge_identity
from halos_eval.stages.judge.outputs import find_outputs, read_outputs
from halos_eval.stages.judge.swapped import ORDERS
from halos_eval.storage import result_files
from halos_eval.storage.records import CheckpointRef, write_model
from tests.doubles import make_record

ROWS = [{"instruction": "a", "output": "x"}, {"instruction": "b", "output": ""}]
FIGURES = {
    "win_rate": 26.5,
    "standard_error": 1.25,
    "length_controlled_winrate": 24.5,
    "lc_standard_error": math.nan,
    "discrete_win_rate": 26.0,
    "n_total": 805,
    "avg_length": 1894,
}
CHECKPOINT = CheckpointRef(name="kto", location="/kto", digest="d")
CLEAN = SimpleNamespace(refused=[])
REFUSED = SimpleNamespace(refused=["content filter", "too long"])
NONE = TooFewReadError(0, 2)


@pytest.fixture
def outputs(tmp_path):
    def write(content):
        path = tmp_path / "outputs.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return str(path)

    return write


def reference(*instructions):
    rows = tuple({"instruction": text, "output": "r"} for text in instructions)
    return prompts.PromptSet(name="r", rows=rows, digest="d")


def test_outputs_are_read(outputs):
    url, data, sampled = find_outputs(outputs(ROWS))
    assert read_outputs(url, data) == ROWS
    assert sampled is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        ([], "expected a non-empty list"),
        ({"instruction": "a"}, "expected a non-empty list"),
        ([ROWS[0], "b"], "item 1 is invalid"),
        ([ROWS[0], {"instruction": "b"}], "item 1 is invalid"),
        ([{"instruction": "b", "output": None}], "item 0 is invalid"),
        ([ROWS[0], {"instruction": "b", "output": "half \ud83d"}], r"output of item 1 has half a character (\ud83d)"),
        ([{"instruction": "\udc00", "output": "x"}], r"instruction of item 0 has half a character (\udc00)"),
        ([ROWS[0] | {"generator": "m\ud83d"}], r"generator of item 0 has half a character (\ud83d)"),
    ],
)
def test_what_is_wrong_in_outputs(outputs, content, words):
    with pytest.raises(BadInput) as caught:
        read_outputs(*find_outputs(outputs(content))[:2])
    assert words in str(caught.value)


def test_outputs_that_are_not_there(tmp_path):
    with pytest.raises(BadInput, match=r"not found\. Run `halos-eval sample`"):
        find_outputs(str(tmp_path / "none.json"))


def test_pairs():
    assert stage._pair(ROWS, reference("b", "a"), "o") == ROWS
    # more outputs than references: the others are neither judged nor averaged
    assert [row["instruction"] for row in stage._pair(ROWS, reference("b"), "o")] == ["b"]


def test_a_reference_without_an_output():
    with pytest.raises(BadInput, match=r"no output for 2 of 3 reference instructions, such as 'c'\. Sample them first"):
        stage._pair(ROWS, reference("a", "c", "d"), "o")


def test_outputs_for_other_prompts_than_the_reference():
    words = "answers other prompts than the reference r: none of its 2 instructions is one of the 3 there"
    with pytest.raises(BadInput, match=words):
        stage._pair(ROWS, reference("c", "d", "e"), "o")


def test_several_outputs_for_one_instruction():
    with pytest.raises(BadInput, match=r"\(2 for 'a'\).*sample_id 0"):
        stage._pair([*ROWS, ROWS[0]], reference("a"), "o")


def test_win_rates_have_their_errors():
    scores, missing = stage._scores(FIGURES, 805, CLEAN)
    assert missing == {}
    assert [(score.task, score.metric, score.value, score.stderr) for score in scores] == [
        ("alpaca_eval", "win_rate", 26.5, 1.25),
        ("alpaca_eval", "length_controlled_winrate", 24.5, None),
        ("alpaca_eval", "discrete_win_rate", 26.0, None),
    ]
    assert all(score.higher_is_better for score in scores)


def test_length_control_is_not_there_for_other_prompts():
    figures = {key: value for key, value in FIGURES.items() if key != "length_controlled_winrate"}
    scores, missing = stage._scores(figures, 805, CLEAN)
    assert missing == {"alpaca_eval-length_controlled_winrate": stage.NO_LENGTH_CONTROL}
    assert len(scores) == 2


def test_a_win_rate_that_is_no_number_is_missing():
    scores, missing = stage._scores(FIGURES | {"win_rate": math.nan}, 805, CLEAN)
    assert missing == {"alpaca_eval-win_rate": "alpaca_eval returned nan"}
    assert "win_rate" not in {score.metric for score in scores}


def test_answers_that_could_not_be_read_are_counted():
    _, missing = stage._scores(FIGURES, 807, CLEAN)
    assert missing == {"alpaca_eval-n_total": "2 of 807 answers could not be read"}
    _, missing = stage._scores(FIGURES, 807, REFUSED)
    assert "(refused: content filter)" in missing["alpaca_eval-n_total"]


def test_an_output_that_was_cut_is_no_unreadable_answer():
    assert stage._scores(FIGURES | {"n_total": 775}, 805, CLEAN, cut=30)[1] == {}
    _, missing = stage._scores(FIGURES | {"n_total": 774}, 805, CLEAN, cut=30)
    assert missing == {"alpaca_eval-n_total": "1 of 775 answers could not be read"}


def annotations(*groups):
    """Annotations of a number of pairs for each kind: read, unread, cut (its output was cut), or equal (outputs)."""
    kinds = {
        "read": {"output_2": "b", "preference": 2.0, ORDERS: [2.0, 2.0]},
        "unread": {"output_2": "b", "preference": math.nan, ORDERS: [2.0, None]},
        "cut": {"output_2": "", "preference": None, ORDERS: [1.0, 1.0]},
        "cut and equal": {"output_2": "a", "preference": None, ORDERS: [1.5, 1.5]},
        "equal": {"output_2": "a", "preference": 1.5, ORDERS: [1.5, 1.5]},
    }
    pairs = [(kind, kinds[kind]) for kind, times in groups for _ in range(times)]
    return [{"instruction": f"{number} {kind}", "output_1": "a", **one} for number, (kind, one) in enumerate(pairs)]


@pytest.mark.parametrize("swap", [False, True])
def test_outputs_that_were_cut_are_not_asked_of_the_judge(swap):
    """95 % of the answers must be readable, of those that count."""

    def check(*groups):
        pairs = annotations(*groups, ("cut", 5), ("cut and equal", 1), ("equal", 10))
        check_read(pairs, {one["instruction"] for one in pairs if "cut" in one["instruction"]}, swap)

    check(("read", 95), ("unread", 5))
    check()  # nobody was asked
    with pytest.raises(TooFewReadError) as caught:
        check(("read", 94), ("unread", 6))
    assert (caught.value.read, caught.value.asked) == ((194, 200) if swap else (94, 100))


def test_no_answer_that_can_be_read_has_its_reason():
    judge = load_judge("demo")
    weighed = {"text": "m", "error": None, "logprobs": {"content": [{"token": "m"}]}}
    unread = stage._no_judgement(SimpleNamespace(asked=2, refused=["too long"], received=[weighed]), judge, NONE)
    assert isinstance(unread, EvaluationFailed)
    assert "logprob_parser could parse no answer of demo-judge" in str(unread)
    refused = stage._no_judgement(SimpleNamespace(asked=2, **vars(REFUSED)), judge, NONE)
    assert isinstance(refused, JudgeRefused)
    assert "every request was refused: content filter" in str(refused)
    few = stage._no_judgement(SimpleNamespace(asked=3, cut=1, **vars(REFUSED)), judge, TooFewReadError(1, 2))
    assert isinstance(few, EvaluationFailed)
    assert "1 ended without text at the limit of tokens" in str(few)
    assert "only 1 of 2 answers" in str(few)
    assert "--force" in str(few)


def test_the_identity_covers_outputs_reference_and_judge(tmp_path):
    def identity(outputs="f", judge="demo", reference="demo"):
        return judge_identity(load_judge(judge), reference, outputs, CHECKPOINT)

    (tmp_path / "reference.json").write_text(json.dumps(ROWS))
    assert identity().inputs.keys() == {"outputs", "reference", "annotator"}
    others = [identity("g"), identity(judge="gpt-4.1"), identity(reference=str(tmp_path / "reference.json"))]
    assert len({identity().fingerprint, *(other.fingerprint for other in others)}) == 4


def test_flip_rates_of_earlier_versions_are_not_current():
    once, both = (judge_identity(load_judge("demo"), "demo", "f", CHECKPOINT, swap=swap) for swap in (False, True))
    assert (once.definition["logic"], both.definition["logic"]) == (3, 4)


@pytest.fixture
def judged(monkeypatch):
    """What ``judge`` would run."""
    jobs = []
    monkeypatch.setattr(stage, "run", lambda job, *_: jobs.append(job))

    def judged(outputs, **options):
        stage.judge(JudgeConfig(outputs=outputs, output_dir="/d", reference="demo", judge="demo", **options))
        return jobs[-1]

    return judged


@pytest.fixture
def sampled(tmp_path):
    """A function that writes outputs and their record as the sample stage does, and returns the record."""

    def write(rows, fingerprint="sampled"):
        files = result_files.write(str(tmp_path), {"outputs.json": json.dumps(rows).encode()})
        record = make_record("sample", fingerprint=fingerprint, files=files)
        write_model(str(tmp_path / "outputs.record.json"), record)
        return record

    return write


def test_sampled_outputs_are_found_by_their_record(judged, sampled, tmp_path):
    record = sampled(ROWS)
    (file,) = record.files
    for name in ("outputs.record.json", "outputs.json", file):
        job = judged(str(tmp_path / name))
        assert (job.inputs["outputs"], job.checkpoint) == ("sampled", record.checkpoint)
    sampled([ROWS[1]], "again")
    assert judged(str(tmp_path / "outputs.record.json")).inputs["outputs"] == "again"
    assert judged(str(tmp_path / file)).inputs["outputs"] == record.files[file]  # no record names it any more


def test_outputs_that_were_edited_are_not_those_of_the_record(judged, outputs, sampled):
    record = sampled(ROWS)
    changed = judged(outputs([{"instruction": "a", "output": "edited", "generator": "me"}, ROWS[1]]))
    assert (changed.inputs["outputs"], changed.checkpoint.name) == (changed.checkpoint.digest, "me")
    assert changed.inputs["outputs"] not in record.files.values()


def test_a_record_of_an_earlier_version_names_its_file_without_a_digest(judged, outputs, tmp_path):
    digest = digest_bytes(Path(outputs(ROWS)).read_bytes())
    write_model(str(tmp_path / "outputs.record.json"), make_record("sample", files={"outputs.json": digest}))
    for name in ("outputs.record.json", "outputs.json"):
        assert judged(str(tmp_path / name)).inputs["outputs"] == "f"


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (make_record("harness", files={"results.json": "d"}), "is no record of outputs"),
        (make_record("sample", files={}), "is no record of outputs"),
        (make_record("sample", files={"../outputs.json": "d"}), "is no record of outputs"),
        (make_record("sample", files={"other.json": "d"}), "is missing or damaged; .*Sample again with --force"),
    ],
)
def test_a_record_without_its_outputs(tmp_path, record, words):
    url = str(tmp_path / "outputs.record.json")
    write_model(url, record)
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(BadInput, match=words):
        find_outputs(url)


def test_outputs_without_a_record_are_known_by_their_digest(judged, outputs):
    url = outputs(ROWS)
    job = judged(url)
    assert job.inputs["outputs"] == job.checkpoint.digest == digest_bytes(Path(url).read_bytes())
    assert job.checkpoint.name == "outputs"
    assert judged(outputs([ROWS[0] | {"generator": "/models/kto/FINAL"}])).checkpoint.name == "kto"
    assert judged(url, name="mine").checkpoint.name == "mine"
