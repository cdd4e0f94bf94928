"""The answers to a task's requests as a file, and a model that only replays them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from halos_eval.config.settings import FROZEN
from halos_eval.digests import digest_bytes, digest_json
from halos_eval.errors import EvaluationFailed, StoreError
from halos_eval.stages.harness.tasks import leaves
from halos_eval.stages.harness.thinking import Thoughts
from halos_eval.storage import filesystem, result_files
from halos_eval.storage.records import Record

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM

FILE = "answers.json.gz"
METHODS = ("loglikelihood", "loglikelihood_rolling", "generate_until")


class Answer(BaseModel):
    """The model's answer to one request."""

    model_config = FROZEN

    request: str
    """Digest of the method and the arguments, as lm_eval makes them."""
    answer: Any
    """Text, log-likelihood, or log-likelihood and whether it is the most likely continuation."""


class Answers(BaseModel):
    """All answers to the requests of a task, in their order, and what else lm_eval asked the model."""

    model_config = FROZEN

    version: Literal[1] = 1
    """Version of this format."""
    answers: dict[str, tuple[Answer, ...]]
    """Answers by method of lm_eval's class LM."""
    rendered: dict[str, str] = {}
    """Conversations as text, by the digest of their turns; empty without a chat template."""
    about: dict[str, Any] = {}
    """What lm_eval writes about the model to its results."""
    thoughts: Thoughts | None = None
    """The thinking that was removed from the answers; None of a model that is not declared to think."""


class Keeper:
    """Keeps what lm_eval asks a model, and the model's answers."""

    def __init__(self, model: LM) -> None:
        """Wrap the methods of ``model``. Call it last, so that requests are seen as lm_eval makes them."""
        self._answers: dict[str, list[Answer]] = {}
        self._rendered: dict[str, str] = {}
        self._about = _about(model)
        for method in METHODS:
            setattr(model, method, self._kept(method, getattr(model, method)))
        model.apply_chat_template = self._kept_text(model.apply_chat_template)

    @property
    def answers(self) -> Answers:
        """The answers so far, in the order of the requests."""
        kept = {method: tuple(found) for method, found in self._answers.items()}
        return Answers(answers=kept, rendered=self._rendered, about=self._about)

    def _kept(self, method: str, ask: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
        def asked(requests: list[Instance], **options: Any) -> list[Any]:
            found = ask(requests, **options)
            pairs = zip(requests, found, strict=True)
            self._answers.setdefault(method, []).extend(
                Answer(request=_key(method, request), answer=answer) for request, answer in pairs
            )
            return found

        return asked

    def _kept_text(self, render: Callable[..., str]) -> Callable[..., str]:
        def rendered(turns: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
            text = render(turns, add_generation_prompt)
            self._rendered[digest_json([turns, add_generation_prompt])] = text
            return text

        return rendered


def _key(method: str, request: Instance) -> str:
    return digest_json([method, request.args])


def _about(model: LM) -> dict[str, Any]:
    """Return what ``simple_evaluate`` of lm_eval 0.4.13 adds to its results."""
    from lm_eval.loggers.utils import add_tokenizer_info

    found: dict[str, Any] = {}
    add_tokenizer_info(found, model)
    path = getattr(getattr(model, "config", None), "_name_or_path", None)
    described = model.get_model_info() if hasattr(model, "get_model_info") else {}
    return found | {"config": {"model": path or type(model).__name__, **described}}


class _AnsweredError(Exception):
    """All requests are answered."""


@contextmanager
def stopped_before_scoring(tasks: list[Any]) -> Iterator[None]:
    """End lm_eval's evaluation once all requests are answered: no filter and no metric of ``tasks`` runs.

    lm_eval's own ``predict_only`` runs the filters, and a task's own function ``process_results``.
    """

    def stop() -> None:
        raise _AnsweredError

    for leaf in leaves(tasks):
        leaf.apply_filters = stop
    try:
        yield
    except _AnsweredError:
        return
    raise EvaluationFailed("lm_eval ended before it asked the model for an answer. Its log above has the reason")


@contextmanager
def metrics_not_loaded() -> Iterator[None]:
    """Give tasks that load a metric when they are imported an object that does nothing, until the context ends.

    humaneval and mbpp load one that executes code, and try it.
    """
    import evaluate

    load = evaluate.load
    evaluate.load = lambda *_, **__: _Nothing()
    try:
        yield
    finally:
        evaluate.load = load


class _Nothing:
    """Every attribute, call and item of it is nothing again."""

    def __getattr__(self, name: str) -> _Nothing:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *_: Any, **__: Any) -> _Nothing:
        return self

    def __getitem__(self, key: Any) -> _Nothing:
        return self

    def __iter__(self) -> Iterator[_Nothing]:
        return iter(())


def replayer(answers: Answers) -> LM:
    """Return a model that gives the kept answers. It raises EvaluationFailed if it is asked anything else."""
    from lm_eval.api.model import LM

    def mismatch(what: str) -> EvaluationFailed:
        return EvaluationFailed(
            f"lm_eval asks for another {what} than when the answers were generated. The task's data or code has "
            "changed in between. Trigger the evaluation again"
        )

    class Replayer(LM):  # type: ignore[misc]
        """Gives kept answers in their order."""

        tokenizer_name = ""

        def apply_chat_template(self, turns: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
            try:
                return answers.rendered[digest_json([turns, add_generation_prompt])]
            except KeyError:
                raise mismatch("conversation") from None

        def loglikelihood(self, asked: list[Instance], **_: Any) -> list[tuple[float, bool]]:
            return self._answers("loglikelihood", asked)

        def loglikelihood_rolling(self, asked: list[Instance], **_: Any) -> list[float]:
            return self._answers("loglikelihood_rolling", asked)

        def generate_until(self, asked: list[Instance], **_: Any) -> list[str]:
            return self._answers("generate_until", asked)

        def _answers(self, method: str, asked: list[Instance]) -> list[Any]:
            kept = answers.answers.get(method, ())
            if [one.request for one in kept] != [_key(method, request) for request in asked]:
                raise mismatch("answer")
            return [tuple(one.answer) if isinstance(one.answer, list) else one.answer for one in kept]

    return Replayer()


def write_answers(folder: str, answers: Answers) -> dict[str, str]:
    """Write the answers to ``folder``; return the digest by the name of the file. Raise StoreError."""
    # ASCII, because a text may contain characters that UTF-8 cannot encode; mtime=0: the same answers, the same bytes.
    document = answers.model_dump(exclude=None if answers.thoughts else {"thoughts"})
    data = gzip.compress(json.dumps(document, default=str).encode(), mtime=0)
    return result_files.write(folder, {FILE: data})


def name_of_answers(record: Record) -> str:
    """Return the name of the file with the answers to which ``record`` belongs. Raise StoreError."""
    if found := next((name for name in record.files if result_files.plain_name(name) == FILE), None):
        return found
    raise StoreError("the record of the answers names no file with them. Run the stage harness again with --force")


def read_answers(folder: str, record: Record) -> bytes:
    """Return the content of the file with the answers to which ``record`` belongs. Raise StoreError."""
    name = name_of_answers(record)
    url = filesystem.join(folder, name)
    try:
        data = filesystem.read_bytes(url)
    except FileNotFoundError as error:
        raise StoreError(f"{url} does not exist, but its record does. Run the stage harness again") from error
    if digest_bytes(data) != record.files[name]:
        raise StoreError(f"{url} does not match the digest in its record. Run the stage harness again with --force")
    return data


def parse_answers(data: bytes) -> Answers:
    """Return the answers in the content of their file."""
    return Answers.model_validate(json.loads(gzip.decompress(data)))
