"""Requests to transformers, without lm_eval: a killed run resumes to the same answers and the same counts."""

from __future__ import annotations

import math
from types import SimpleNamespace
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halos_eval.errors import BadInput
from halos_eval.stages.harness.chunks import Watch, in_chunks
from halos_eval.stages.prompt import Prompting
from halos_eval.storage import filesystem
from halos_eval.storage.journal import Journal
from tests.doubles.tokenizer import CHATML, FIRST, Tokenizer

METHODS = ("loglikelihood", "loglikelihood_rolling", "generate_until")
LENGTH = 10  # tokens of the longest prompt and answer
END = "<|im_end|>"


class Model:
    """Has lm_eval's structure. Answers with the reversed prompt, cut at ``max_gen_toks``; dies after ``patience``."""

    def __init__(self, patience=math.inf):
        self.patience = patience
        self.computed = []
        self.max_length, self.max_gen_toks = LENGTH, 4
        self.tokenizer = Tokenizer("</s>", END, eos="</s>")
        self.tok_encode = self.tokenizer.encode
        self.model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=FIRST))
        self.rows = self.ends = None

    def _compute(self, method, requests):
        if self.patience == 0:
            raise SystemExit(143)
        self.patience -= 1
        self.computed += [(method, request.args) for request in requests]

    def loglikelihood(self, requests, disable_tqdm=False):
        self._compute("loglikelihood", requests)
        pairs = [request.args for request in requests]
        return self._loglikelihood_tokens([(pair, *map(self.tok_encode, pair)) for pair in pairs], disable_tqdm)

    def _loglikelihood_tokens(self, requests, disable_tqdm):
        return [(-float(len(context + end)), len(end) % 2 == 0) for _, context, end in requests]

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        self._compute("loglikelihood_rolling", requests)
        return [-float(len(request.args[0])) for request in requests]

    def generate_until(self, requests, disable_tqdm=False):
        self._compute("generate_until", requests)
        return [self._generate(*request.args) for request in requests]

    def _generate(self, prompt, options):
        """One prompt after the other, as rows of a batch of one."""
        most = options.get("max_gen_toks", 4)
        ids = self.tok_encode(prompt)
        self.rows = [[*ids, *ids[::-1][:most]]]
        context, stop = SimpleNamespace(shape=(1, len(ids))), options["until"]
        made = self._model_generate(context=context, max_length=len(ids) + most, stop=stop)
        text = self.tokenizer.decode(made.tolist()[0][len(ids) :])
        for one in stop:
            text = text.partition(one)[0]
        return text

    def _model_generate(self, context, max_length, stop, eos_token_id):
        self.ends = eos_token_id
        return Tensor(self.rows)


class Tensor(SimpleNamespace):
    """Rows of ids, as a tensor."""

    def __init__(self, rows):
        super().__init__(tolist=lambda: rows, shape=(len(rows), len(rows[0])))


def pair(number, context="c", end="e"):
    return SimpleNamespace(args=(context, end), task_name="t", doc_id=number)


def generation(number, context, **options):
    found = SimpleNamespace(task_name="t", doc_id=number)
    type_ = type("Instance", (SimpleNamespace,), {"args": property(lambda self: self.arguments)})
    return type_(**vars(found), arguments=(context, {"until": ["\n"]} | options))


def rolling(number, text):
    return SimpleNamespace(args=(text,), task_name="t", doc_id=number)


def start(model, url, save_every=2, prompting=None):
    """Prepare the model as the stage does, and return the counts."""
    prompting = prompting or Prompting(model.tokenizer)
    return in_chunks(model, Journal(url, seconds=0), save_every, prompting, Watch(model, prompting))


def ask(model, url, save_every, texts):
    """Return the answers of every method, requested as simple_evaluate requests them, and the counts."""
    tally = start(model, url, save_every)
    asked = {
        "loglikelihood": [pair(number, text or "-") for number, text in enumerate(texts)],
        "loglikelihood_rolling": [rolling(number, text) for number, text in enumerate(texts)],
        "generate_until": [generation(number, text) for number, text in enumerate(texts)],
    }
    return {method: getattr(model, method)(asked[method], disable_tqdm=True) for method in METHODS}, tally.details


@given(
    texts=st.lists(st.text("ab\n", max_size=12), max_size=12),
    save_every=st.integers(1, 13),
    kills=st.lists(st.integers(0, 4), max_size=3),
)
def test_a_killed_run_computes_only_the_rest_and_answers_and_counts_the_same(texts, save_every, kills):
    url, other = f"memory://{uuid4()}", f"memory://{uuid4()}"
    undisturbed = Model()
    whole = ask(undisturbed, other, save_every, texts)
    chunks = len(METHODS) * math.ceil(len(texts) / save_every)
    computed = []
    for patience in kills:
        model = Model(patience)
        if patience < chunks:
            with pytest.raises(SystemExit):
                ask(model, url, save_every, texts)
        else:
            assert ask(model, url, save_every, texts) == whole
        chunks -= min(patience, chunks)
        computed += model.computed
    model = Model()
    assert ask(model, url, save_every, texts) == whole
    assert computed + model.computed == undisturbed.computed
    filesystem.delete(url)
    filesystem.delete(other)


@given(texts=st.lists(st.text("ab\n", max_size=12), max_size=12), save_every=st.integers(1, 13))
def test_what_is_counted(texts, save_every):
    url = f"memory://{uuid4()}"
    _, details = ask(Model(), url, save_every, texts)
    answers = [text[::-1][:4].partition("\n")[0] for text in texts]
    too_long = {number for number, text in enumerate(texts) if len(text or "-") + len("e") > LENGTH + 1}
    no_room = {number for number, text in enumerate(texts) if len(text) + 4 > LENGTH}
    expected = {"truncated_prompts": len(too_long | no_room), "dropped_system_texts": 0}
    if texts:
        expected |= {
            "generated_answers": len(texts),
            "empty": sum(not answer.strip() for answer in answers),
            "cut_at_max_tokens": sum(len(text) >= 4 and "\n" not in text[-4:] for text in texts),
        }
    assert {name: details[name] for name in expected} == expected
    filesystem.delete(url)


def test_a_task_that_generates_nothing_has_no_counts_of_answers(tmp_path):
    model = Model()
    tally = start(model, str(tmp_path))
    model.loglikelihood([pair(0)])
    assert tally.details == {"truncated_prompts": 0, "dropped_system_texts": 0}


def test_the_longest_scored_text(tmp_path):
    model, longest = Model(), LENGTH + 1
    tally = start(model, str(tmp_path))
    model.loglikelihood([pair(0, "c" * (longest - 1)), pair(1, "c" * longest), pair(1, "c" * longest, "f")])
    assert tally.details["truncated_prompts"] == 1  # the document has two choices


@pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"])
def test_a_generation_needs_room_for_its_prompt(name, tmp_path):
    model = Model()
    tally = start(model, str(tmp_path))
    model.generate_until([generation(0, "aa", **{name: LENGTH - 2}), generation(1, "aaa", **{name: LENGTH - 2})])
    assert tally.details["truncated_prompts"] == 1
    with pytest.raises(
        BadInput, match=r"generate 10 tokens.*none of its length of 10 for a prompt. Raise --max-model-len"
    ):
        model.generate_until([generation(0, "a", **{name: LENGTH})])


def test_a_dropped_system_text_counts_in_a_resumed_run_as_well(tmp_path):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}]
    for _ in range(2):
        model = Model()
        prompting = Prompting(model.tokenizer, "{{ messages[-1].content }}")
        tally = start(model, str(tmp_path), prompting=prompting)
        text = prompting.render(turns)
        model.loglikelihood([pair(0, text), pair(0, text, "f"), pair(1, "b")])
        assert tally.details["dropped_system_texts"] == 1


@pytest.mark.parametrize("until", [["\n"], "\n", None, [], ["\n", END]])
def test_a_generation_ends_with_the_turn(until, tmp_path):
    model = Model()
    start(model, str(tmp_path), prompting=Prompting(model.tokenizer, CHATML, ["#"]))
    request = generation(0, "abc", until=until)
    before = repr(request)
    model.generate_until([request])
    ((_, (context, options)),) = model.computed
    expected = {"#", END} | ({"\n"} if until else set())
    assert (context, set(options["until"]), len(options["until"])) == ("abc", expected, len(expected))
    assert repr(request) == before


@pytest.mark.parametrize(
    ("options", "added"),
    [
        ({}, {"do_sample": False}),
        ({"temperature": 0}, {"do_sample": False}),
        ({"temperature": 0.7}, {}),
        ({"do_sample": True}, {}),
        ({"do_sample": False, "temperature": 0.7}, {}),
    ],
    ids=str,
)
def test_an_answer_is_greedy_unless_the_task_says_otherwise(options, added, tmp_path):
    model = Model()
    start(model, str(tmp_path))
    model.generate_until([generation(0, "abc", **options)])
    ((_, (_, sent)),) = model.computed
    assert sent == {"until": ["\n"], **options, **added}


def test_transformers_ends_each_answer_at_special_tokens_and_says_what_it_cut(tmp_path):
    model = Model()
    model.rows = [
        [1, *map(ord, "abc")],
        [1, *map(ord, "ab"), FIRST + 1],
        [1, ord("a"), FIRST, FIRST],
        [1, *map(ord, "a#b")],
    ]
    prompting = Prompting(model.tokenizer)
    watch = Watch(model, prompting)
    watch.begin("generate_until", [])
    model._model_generate(context=SimpleNamespace(shape=(4, 1)), max_length=4, stop=["#", "</s>", END])
    assert model.ends == [FIRST, FIRST + 1]
    assert watch.notes() == {"truncated": [], "cut": 1}
    watch.begin("generate_until", [])
    model._model_generate(context=SimpleNamespace(shape=(4, 1)), max_length=5, stop=["</s>"])
    assert model.ends == [FIRST]
    assert watch.notes()["cut"] == 0


def test_what_was_there_from_a_killed_run_is_counted(tmp_path):
    requests = [rolling(number, text) for number, text in enumerate("abcde")]
    first = Model()
    assert start(first, str(tmp_path)).requests.total() == 0
    first.loglikelihood_rolling(requests[:4])
    second = Model()
    counted = start(second, str(tmp_path))
    second.loglikelihood_rolling(requests)
    assert counted.requests == {"resumed": 4, "computed": 1}


def test_other_requests_are_not_taken_for_those_that_are_done(tmp_path):
    ask(Model(), str(tmp_path), 2, ["a", "b"])
    model = Model()
    ask(model, str(tmp_path), 2, ["b", "a"])
    assert len(model.computed) == 2 * len(METHODS)
