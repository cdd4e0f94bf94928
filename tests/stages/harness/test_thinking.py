"""Thinking in the answers to lm_eval's requests, without lm_eval."""

from __future__ import annotations

import gzip
import json
from types import SimpleNamespace

import pytest

from halos_eval.config.chat import ChatSettings
from halos_eval.errors import BadInput, EvaluationFailed
from halos_eval.stages.harness.generation import options_of, prepare
from halos_eval.stages.harness.options import HarnessConfig
from halos_eval.stages.harness.replay import Answers, parse_answers, read_answers, write_answers
from halos_eval.stages.harness.results import NO_USAGE
from halos_eval.stages.harness.thinking import members, separating
from halos_eval.stages.prompt import Prompting
from halos_eval.stages.run import Outcome
from halos_eval.stages.thinking import CUT
from halos_eval.storage.records import Coverage, Score
from tests.doubles import make_record
from tests.doubles.tokenizer import Tokenizer

DECLARED = {"apply_chat_template": True, "think_end_token": "</think>"}


def config(**options):
    return HarnessConfig(model="m", task="t", output_dir="o", **options)


def request(number, prompt="2 + 2 =", task="t", **options):
    arguments = (prompt, {"until": ["Q"]} | options)
    return SimpleNamespace(task_name=task, doc_id=number, args=arguments, arguments=arguments)


class Model:
    """Answers with the texts that it is given, and keeps what it was asked."""

    def __init__(self, *texts):
        self.texts, self.asked = list(texts), []

    def generate_until(self, requests, **_):
        self.asked += [one.arguments for one in requests]
        return self.texts[: len(requests)]


def answered(model, requests, **options):
    chosen = config(**options)
    way = Prompting.chat(Tokenizer("</s>", eos="</s>"), "chatml", (), "m", ChatSettings.model_validate(
        chosen.model_dump(include=set(ChatSettings.model_fields))
    ))  # fmt: skip
    thoughts = separating(model, way)
    return model.generate_until(requests), thoughts


def test_stop_strings_end_the_answer_and_not_the_thinking():
    model = Model("<think>Q?</think>4 Q 5", "<think>Q" + CUT, "4")
    answers, thoughts = answered(model, [request(number) for number in range(3)], **DECLARED)
    assert answers == ["4 ", "", "4"]
    assert [options["until"] for _, options in model.asked] == [[], [], []]
    assert thoughts.cut_of("t") == {1}
    assert thoughts.details == {"cut_at_max_tokens": 1, "empty": 1, "unended_thinking": 0}


def test_without_a_declaration_nothing_changes_but_thinking_is_counted():
    model = Model("<think>a</think>4", "4")
    answers, thoughts = answered(model, [request(0), request(1)], apply_chat_template=True)
    assert answers == ["<think>a</think>4", "4"]
    assert [options["until"] for _, options in model.asked] == [["Q"], ["Q"]]
    assert thoughts.details == {"undeclared_thinking": 1}


def leaf(count, **changes):
    usual = {
        "task_name": "t",
        "instances": [SimpleNamespace(doc_id=number) for number in range(count)],
        "apply_filters": lambda: "filtered",
        "doc_iterator": lambda limit: iter(enumerate("abcdefgh"[:limit])),
    }
    return SimpleNamespace(**(usual | changes))


def test_lm_eval_scores_documents_with_an_end():
    _, thoughts = answered(Model("4", "<think>" + CUT, "5"), [request(number) for number in range(3)], **DECLARED)
    task = leaf(3)
    thoughts.leave_out([task])
    assert [*task.doc_iterator(limit=3)] == [(0, "a"), (1, "b"), (2, "c")]  # when the requests are built
    assert task.apply_filters() == "filtered"
    assert [*task.doc_iterator(limit=3)] == [(0, "a"), (2, "c")]


def test_no_document_has_an_end():
    _, thoughts = answered(Model("<think>" + CUT), [request(0)], **DECLARED)
    task = leaf(1)
    thoughts.leave_out([task])
    with pytest.raises(EvaluationFailed, match=r"all 1 documents of t have an answer that was cut.*max_gen_toks"):
        task.apply_filters()


def corrected(ended, cut, right):
    """The outcome of ``ended`` documents, of which ``right`` are right, and ``cut`` ones."""
    texts = ["4"] * ended + ["<think>" + CUT] * cut
    _, thoughts = answered(Model(*texts), [request(number) for number in range(ended + cut)], **DECLARED)
    rows = [{"doc_id": number, "filter": "none", "acc": float(number < right)} for number in range(ended)]
    results = {"samples": {"t": rows}, "n-samples": {"t": {"effective": ended}}}
    score = Score(task="t", metric="acc", filter="none", value=right / ended)
    coverage = Coverage(attempted=ended, scored=ended)
    return thoughts.corrected(Outcome(scores=(score,), coverage=coverage, usage=NO_USAGE), results)


def test_few_cut_documents_are_not_scored():
    outcome = corrected(ended=19, cut=1, right=10)
    assert [score.value for score in outcome.scores] == [10 / 19]
    assert outcome.missing == {}
    assert outcome.coverage == Coverage(attempted=20, scored=19)


def test_with_many_cut_documents_there_is_no_score_but_its_bounds():
    outcome = corrected(ended=16, cut=4, right=8)
    assert outcome.scores == ()
    assert outcome.missing == {
        "t-acc,none": "4 of 20 documents have an answer that was cut at its budget; between 0.4000 if these are wrong "
        "and 0.6000 if they are right. Raise gen_kwargs: max_gen_toks, and max_model_len"
    }


def test_members_of_groups():
    assert members("g", {"g": ["a", "h"], "h": ["b"]}) == {"a", "b"}
    assert members("a", {"g": ["a"]}) == {"a"}


def test_thinking_is_kept_with_the_samples_and_with_answers_that_are_scored_later(tmp_path):
    _, thoughts = answered(Model("<think>a</think>4", "<think>b" + CUT), [request(0), request(1)], **DECLARED)
    files = write_answers(str(tmp_path), Answers(answers={}, thoughts=thoughts))
    kept = parse_answers(read_answers(str(tmp_path), make_record(files=files))).thoughts
    assert kept == thoughts
    noted = kept.noted({"samples": {"t": [{"doc_id": 0}]}})
    assert noted["samples"]["t"] == [{"doc_id": 0, "thinking": ["<think>a</think>"]}]
    ((name, content),) = kept.contents().items()
    row = {"doc_id": 1, "prompt": "2 + 2 =", "resps": [""], "thinking": ["<think>b"], "cut": [True]}
    assert (name, json.loads(gzip.decompress(content))) == ("cut/t.jsonl.gz", row)


def task(kind="generate_until", filters=None, prefix=None, **options):
    changed = {}
    return SimpleNamespace(
        task_name="t",
        OUTPUT_TYPE=kind,
        config=SimpleNamespace(filter_list=filters, generation_kwargs=options, gen_prefix=prefix),
        changed=changed,
        set_config=changed.__setitem__,
    )


def ensemble(name, *steps):
    return {"name": name, "filter": [{"function": step} if isinstance(step, str) else step for step in steps]}


FIRST = ensemble("first", "regex", "take_first")
VOTE = ensemble("maj@8", {"function": "take_first_k", "k": 8}, "majority_vote", "take_first")
ALL = ensemble("maj@64", "majority_vote", "take_first")
PASS = ensemble("create_test", "custom")
SAMPLED = {"temperature": 0.2, "do_sample": True}


@pytest.mark.parametrize(
    ("options", "of_task", "words"),
    [
        ({"apply_chat_template": True, "thinking": "off"}, task("multiple_choice"), "Set thinking: null for this task"),
        ({"apply_chat_template": True, "thinking": "on"}, task(prefix="def"), "begins the answer for the model"),
        ({"gen_kwargs": {"top_p": 0.9}}, task("loglikelihood"), "gen_kwargs has no effect on t"),
        ({"repeats": 4}, task("loglikelihood"), "repeats has no effect on t"),
        ({"repeats": 4}, task(**SAMPLED), "t scores only the first answer"),
        ({"repeats": 4}, task(filters=[FIRST], **SAMPLED), "t scores only the first answer"),
        ({"repeats": 4}, task(filters=[PASS], temperature=0.2, do_sample=False), "greedy, so all are equal"),
        ({"repeats": 4}, task(filters=[PASS]), "Set gen_kwargs"),
        ({"repeats": 4}, task(filters=[VOTE], **SAMPLED), "has the score maj@8; expected at least 8"),
        ({"repeats": 16}, task(filters=[VOTE, ALL], **SAMPLED), "has the score maj@64; expected 64"),
    ],
)
def test_options_without_an_effect(options, of_task, words):
    with pytest.raises(BadInput, match=words):
        prepare(config(**options), [of_task])


@pytest.mark.parametrize(
    ("options", "of_task"),
    [
        ({"repeats": 4}, task(filters=[PASS], **SAMPLED)),
        ({"repeats": 4, "gen_kwargs": {"temperature": 0.6}}, task(filters=[PASS], do_sample=False)),
        ({"repeats": 64}, task(filters=[FIRST, VOTE, ALL], **SAMPLED)),
    ],
)
def test_several_answers(options, of_task):
    prepare(config(**options), [of_task])
    assert of_task.changed == {"repeats": options["repeats"]}


def test_a_checkpoint_that_may_think_can_be_scored_by_log_likelihoods():
    prepare(config(apply_chat_template=True, think_end_token="</think>"), [task("multiple_choice")])


def test_generation_options():
    assert options_of(config()) is None
    chosen = config(gen_kwargs={"temperature": 0.6, "top_p": 0.95, "max_gen_toks": 100})
    assert options_of(chosen) == {"temperature": 0.6, "top_p": 0.95, "max_gen_toks": 100, "do_sample": True}
    assert options_of(config(gen_kwargs={"temperature": 0})) == {"temperature": 0, "do_sample": False}
