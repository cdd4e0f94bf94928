"""Requests to vLLM, without lm_eval: each is journaled when it is finished, and a killed run computes only the rest."""

from __future__ import annotations

import math
import sys
from collections import Counter
from contextlib import suppress
from types import SimpleNamespace
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halos_eval.errors import BadInput
from halos_eval.stages.harness.streamed import TOKENIZED, Streamed
from halos_eval.stages.prompt import Prompting
from halos_eval.storage import filesystem
from halos_eval.storage.journal import Journal
from tests.doubles.engine import Answering
from tests.doubles.tokenizer import CHATML, Tokenizer
from tests.stages.harness.test_chunks import END, generation, pair, rolling

LENGTH = 10  # tokens of the longest prompt and answer
LONGEST = LENGTH - 1  # vLLM generates a token after those that it scores
SEED = (0, 1234, 1234, 1234)
TEXTS = st.lists(st.text("ab\n", max_size=12), max_size=12)


def windows(token_list, prefix_token, max_seq_len, context_len):
    """Cut a text as lm_eval does, with one token before each part."""
    assert context_len == 1
    whole = [prefix_token, *token_list]
    for start in range(0, len(token_list), max_seq_len):
        part = token_list[start : start + max_seq_len]
        yield [whole[start], *part[:-1]], part


def processed(text, stop, think_end_token):
    assert think_end_token is None
    for one in stop:
        text = text.split(one)[0]
    return text


@pytest.fixture(autouse=True, scope="module")
def _lm_eval():
    """The functions of lm_eval that the module calls."""
    utils = SimpleNamespace(get_rolling_token_windows=windows, make_disjoint_window=lambda pair: (pair[0][:1], pair[1]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "lm_eval.utils", utils)
        patch.setitem(sys.modules, "lm_eval.models.utils", SimpleNamespace(postprocess_generated_text=processed))
        yield


class Model:
    """Has the structure of lm_eval's vLLM backend. Its own methods that ask an engine do not work."""

    def __init__(self):
        self.max_length, self.max_gen_toks = LENGTH, 4
        self.tokenizer = Tokenizer("</s>", END, eos="</s>")
        self.eot_token_id = self.prefix_token_id = self.tokenizer.eos_token_id

    def tok_encode(self, text):
        return self.tokenizer.encode(text) if isinstance(text, str) else [*map(self.tokenizer.encode, text)]

    def loglikelihood(self, requests, disable_tqdm=False):
        pairs = [request.args for request in requests]
        return self._loglikelihood_tokens([(one, *map(self.tok_encode, one)) for one in pairs], disable_tqdm=True)

    def modify_gen_kwargs(self, options, eos, default_max_gen_toks):
        options = dict(options)
        until = [options.pop("until")] if isinstance(options["until"], str) else [*options.pop("until")]
        most = next(
            (options.pop(name) for name in ("max_gen_toks", "max_new_tokens", "max_tokens") if name in options),
            default_max_gen_toks,
        )
        if options.pop("do_sample", None) is False:
            options["temperature"] = 0.0
        return options, [*until, eos], most


def start(url, patience=math.inf, prompting=None):
    """Prepare a model as the stage does. Return it, its engine and the counts."""
    model = Model()
    engine = Answering(model.tokenizer, LENGTH, patience)
    streamed = Streamed(model, engine, Journal(url, seconds=0), prompting or Prompting(model.tokenizer), SEED)
    return model, engine, streamed


def ask(model, texts):
    """Return the answers of every method, requested as simple_evaluate requests them."""
    return [
        model.loglikelihood([pair(number, text or "-") for number, text in enumerate(texts)], disable_tqdm=True),
        model.loglikelihood_rolling([rolling(number, text) for number, text in enumerate(texts)], disable_tqdm=True),
        model.generate_until([generation(number, text) for number, text in enumerate(texts)], disable_tqdm=True),
    ]


@given(texts=st.lists(st.text("ab\n", max_size=8), max_size=12), kills=st.lists(st.integers(0, 8), max_size=3))
def test_a_killed_run_computes_only_the_rest_and_answers_and_counts_the_same(texts, kills):
    url, other = f"memory://{uuid4()}", f"memory://{uuid4()}"
    model, undisturbed, whole = start(other)
    expected = ask(model, texts)
    asked = []
    for patience in kills:
        model, engine, _ = start(url, patience)
        with suppress(SystemExit):
            assert ask(model, texts) == expected
        asked += engine.asked
    model, engine, again = start(url)
    assert ask(model, texts) == expected
    assert again.tally.details == whole.tally.details
    assert Counter(map(repr, asked + engine.asked)) == Counter(map(repr, undisturbed.asked))
    filesystem.delete(url)
    filesystem.delete(other)


@pytest.mark.parametrize("patience", range(4))
def test_a_text_of_several_windows_is_resumed_as_a_whole(patience, tmp_path):
    model, _, _ = start(str(tmp_path), patience)
    with suppress(SystemExit):
        model.loglikelihood_rolling([rolling(0, "a" * 20)])
    model, engine, _ = start(str(tmp_path))
    assert model.loglikelihood_rolling([rolling(0, "a" * 20)]) == [-23.0]
    assert len(engine.asked) == (0 if patience == 3 else 3)


@given(texts=TEXTS)
def test_what_is_answered_and_counted(texts):
    url = f"memory://{uuid4()}"
    model, engine, streamed = start(url)
    scores, rolled, answers = ask(model, texts)
    lengths = [len(text or "-") + 1 for text in texts]
    assert scores == [(-float(min(length, LONGEST)), False) for length in lengths]
    # Each window of eight tokens is scored with the one before it.
    assert rolled == [-float(len(text) + math.ceil(len(text) / 8)) for text in texts]
    prompts = [text[-(LENGTH - 4) :] for text in texts]
    assert answers == [prompt[::-1][:4].partition("\n")[0] for prompt in prompts]
    too_long = {number for number, length in enumerate(lengths) if length > LONGEST}
    no_room = {number for number, text in enumerate(texts) if len(text) + 4 > LENGTH}
    details = {"truncated_prompts": len(too_long | no_room), "dropped_system_texts": 0}
    if texts:
        details |= {
            "generated_answers": len(texts),
            "empty": sum(not answer.strip() for answer in answers),
            "cut_at_max_tokens": sum(len(prompt) > 4 and "\n" not in prompt[-4:] for prompt in prompts),
        }
    assert streamed.tally.details == details
    assert max((len(one.token_ids) for one in engine.asked), default=0) <= LONGEST
    filesystem.delete(url)


def test_a_finished_request_is_in_the_journal_before_the_next_ends(tmp_path):
    model, _, _ = start(str(tmp_path), patience=2)
    with pytest.raises(SystemExit):
        model.generate_until([generation(number, text) for number, text in enumerate("abcde")])
    assert len(Journal(str(tmp_path)).load()) == 2


def test_a_task_that_generates_nothing_has_no_counts_of_answers(tmp_path):
    model, _, streamed = start(str(tmp_path))
    model.loglikelihood([pair(0)])
    assert streamed.tally.details == {"truncated_prompts": 0, "dropped_system_texts": 0}


def test_a_continuation_is_scored_after_its_context(tmp_path):
    model, engine, _ = start(str(tmp_path))
    model.loglikelihood([pair(0, "abc", "de"), pair(1, "abcdefgh", "ij"), pair(2, "a", "b" * 20)])
    found = {one.key: (model.tokenizer.decode(one.token_ids), one.scored) for one in engine.asked}
    # Truncated from the left; the first token of a text has no probability.
    assert found == {"0.0": ("abcde", 2), "1.0": ("bcdefghij", 2), "2.0": ("b" * 9, 8)}


@pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens", "max_tokens"])
def test_a_generation_needs_room_for_its_prompt(name, tmp_path):
    model, engine, streamed = start(str(tmp_path))
    model.generate_until([generation(0, "aa", **{name: LENGTH - 2}), generation(1, "aab", **{name: LENGTH - 2})])
    assert streamed.tally.details["truncated_prompts"] == 1
    assert [model.tokenizer.decode(one.token_ids) for one in engine.asked] == ["ab", "aa"]
    with pytest.raises(
        BadInput, match=r"generate 10 tokens.*none of its length of 10 for a prompt. Raise --max-model-len"
    ):
        model.generate_until([generation(0, "a", **{name: LENGTH})])


def test_a_dropped_system_text_counts_in_a_resumed_run_as_well(tmp_path):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}]
    for _ in range(2):
        prompting = Prompting(Model().tokenizer, "{{ messages[-1].content }}")
        model, _, streamed = start(str(tmp_path), prompting=prompting)
        text = prompting.render(turns)
        model.loglikelihood([pair(0, text), pair(0, text, "f"), pair(1, "b")])
        assert streamed.tally.details["dropped_system_texts"] == 1


@pytest.mark.parametrize("until", [["\n"], "\n", None, [], ["\n", END]])
def test_a_generation_ends_with_the_turn(until, tmp_path):
    model, engine, _ = start(str(tmp_path), prompting=Prompting(Model().tokenizer, CHATML, ["#"]))
    request = generation(0, "abc", until=until)
    before = repr(request)
    model.generate_until([request])
    stop = engine.asked[0].params["stop"]
    assert set(stop) == {"#", END, "</s>"} | ({"\n"} if until else set())
    assert repr(request) == before


@pytest.mark.parametrize(
    ("options", "temperature"),
    [({}, 0), ({"temperature": 0}, 0), ({"do_sample": False, "temperature": 0.7}, 0), ({"temperature": 0.7}, 0.7)],
    ids=str,
)
def test_an_answer_is_greedy_unless_the_task_says_otherwise(options, temperature, tmp_path):
    model, engine, _ = start(str(tmp_path))
    model.generate_until([generation(0, "abc", **options)])
    (asked,) = engine.asked
    assert asked.params["temperature"] == temperature
    assert ("seed" in asked.params) == (temperature > 0)


def test_samples_of_one_prompt_have_seeds_of_their_own_and_a_resumed_run_has_the_same(tmp_path):
    same = generation(0, "abc", temperature=0.7)
    asked = []
    for patience in (1, math.inf):
        model, engine, _ = start(str(tmp_path / "killed"), patience)
        with suppress(SystemExit):
            model.generate_until([same] * 3)
        asked += engine.asked
    model, engine, _ = start(str(tmp_path / "whole"))
    model.generate_until([same] * 3)
    seeds = [[one.params["seed"] for one in found] for found in (asked, engine.asked)]
    assert sorted(seeds[0]) == sorted(seeds[1])
    assert len(set(seeds[0])) == 3


def test_seeds_are_those_of_existing_records(tmp_path):
    model, engine, _ = start(str(tmp_path))
    model.generate_until([generation(0, "abc", temperature=0.7)] * 2)
    assert {one.params["seed"] for one in engine.asked} == {981389645, 1702269826}


def test_the_same_seed_for_several_answers_is_not_taken_from_a_task(tmp_path):
    model, engine, _ = start(str(tmp_path))
    model.generate_until([generation(0, "abc", temperature=0.7, seed=5)] * 2)
    assert len({5, *(one.params["seed"] for one in engine.asked)}) == 3


def test_what_was_there_from_a_killed_run_is_counted(tmp_path):
    requests = [rolling(number, text) for number, text in enumerate("abcde")]
    model, _, _ = start(str(tmp_path))
    model.loglikelihood_rolling(requests[:4])
    model, engine, streamed = start(str(tmp_path))
    model.loglikelihood_rolling(requests)
    assert streamed.tally.requests == {"resumed": 4, "computed": 1}
    assert len(engine.asked) == 1


def test_requests_are_tokenized_when_the_engine_has_room(tmp_path):
    model, engine, _ = start(str(tmp_path))
    texts = []
    encode = model.tok_encode
    model.tok_encode = lambda text: texts.extend(text) or encode(text)

    def first_only(asks, at_once):
        yield engine.answer(next(iter(asks)))
        raise SystemExit(143)

    engine.finished = first_only
    with pytest.raises(SystemExit):
        model.generate_until([generation(number, "a") for number in range(3 * TOKENIZED)])
    assert len(texts) == TOKENIZED


def test_a_limit_of_the_requests_at_once(tmp_path):
    model, engine, streamed = start(str(tmp_path))
    streamed.at_once = 3
    model.loglikelihood([pair(0)])
    assert engine.at_once == 3
