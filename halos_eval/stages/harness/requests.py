"""The requests of a task as `harness` sends them, made by lm_eval without a model."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from halos_eval.stages.harness.answers import as_sent
from halos_eval.stages.harness.options import HarnessConfig
from halos_eval.stages.harness.task_index import task_manager
from halos_eval.stages.harness.tasks import evaluate, include_paths, load_tasks
from halos_eval.stages.prompt import Prompting, Request

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM

log = logging.getLogger(__name__)


def requests_of(config: HarnessConfig, prompting: Prompting) -> list[Request]:
    """Return the requests of the first documents of a task. Raise BadInput, DataUnavailable."""
    manager = task_manager([config.task], include_paths(config.include_path))
    tasks = load_tasks(config, manager)
    requests: list[Request] = []
    try:
        evaluate(config, _recorder(prompting, requests), manager, tasks, predict_only=True)
    except Exception as error:
        if not requests:
            raise
        log.debug("%s: dummy answers could not be processed (%s)", config.task, error)
    return requests


def _recorder(prompting: Prompting, requests: list[Request]) -> LM:  # noqa: C901 (a class whose base is imported late)
    """Return a model that appends what it is asked to ``requests``, and gives dummy answers."""
    from lm_eval.api.model import TemplateLM

    tokenizer = prompting.tokenizer

    class Recorder(TemplateLM):  # type: ignore[misc]
        """Splits requests into token ids as lm_eval's backends do."""

        tokenizer_name = ""
        eot_token_id = tokenizer.eos_token_id
        prefix_token_id = eot_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        titles: tuple[str, ...] = ()

        def apply_chat_template(self, turns: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
            return prompting.render(turns, add_generation_prompt)

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            if add_special_tokens is None:
                return prompting.encode(string)
            return list(tokenizer.encode(string, add_special_tokens=add_special_tokens))

        def loglikelihood(self, asked: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
            self.titles = tuple(map(_title, asked))
            return list(super().loglikelihood(asked, disable_tqdm=True))

        def _loglikelihood_tokens(self, asked: list[Any], **_: Any) -> list[tuple[float, bool]]:
            for title, (_, context, continuation) in zip(self.titles, asked, strict=True):
                requests.append(Request(title=title, token_ids=context, continuation_ids=continuation))
            return [(-1.0, False)] * len(asked)

        def loglikelihood_rolling(self, asked: list[Instance], **_: Any) -> list[float]:
            for one in asked:
                ids = prompting.encode(one.args[0])
                requests.append(Request(title=_title(one), token_ids=[self.prefix_token_id], continuation_ids=ids))
            return [-1.0] * len(asked)

        def generate_until(self, asked: list[Instance], **_: Any) -> list[str]:
            for one in asked:
                context, options = as_sent(one, prompting.stops.all).args
                stop = prompting.stops.all if prompting.thinking else options["until"]
                requests.append(Request(title=_title(one), token_ids=prompting.encode(context), stop=stop))
            return ["none"] * len(asked)

    return Recorder()


def _title(request: Instance) -> str:
    return f"{request.task_name}, document {request.doc_id}"
