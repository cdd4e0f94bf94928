"""A judge that `halos-eval serve` serves beside the judge stage: its weights, and the endpoint once it answers."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from pydantic import SecretStr

from halos_eval.checkpoints.judge_weights import judge_weights
from halos_eval.config.judge import load_judge
from halos_eval.config.served_judge import ServedJudge, judge_choice
from halos_eval.digests import digest_json
from halos_eval.errors import BadInput, Incomplete
from halos_eval.stages.exchange import Exchange
from halos_eval.stages.judge.endpoint import Endpoint
from halos_eval.stages.judge.options import JudgeConfig
from halos_eval.storage.manifest import Manifest

log = logging.getLogger(__name__)


def present(config: JudgeConfig) -> AbstractContextManager[None]:
    """Return a context in which the server knows that this stage runs. Raise BadInput without the server's folder."""
    if config.exchange:
        return Exchange(Path(config.exchange)).present("judge")
    choice = judge_choice(config.judge)
    if isinstance(choice, ServedJudge):
        raise BadInput(
            f"judge {choice.model} is to be served, but --exchange is not given; expected the folder that `halos-eval "
            f"serve {choice.model} --exchange FOLDER` gets as well. Run both, with a new folder"
        )
    return nullcontext()


class Served:
    """The judge that a command line names, with the weights and the server that it needs if it is served."""

    def __init__(self, config: JudgeConfig, manifest: Manifest | None) -> None:
        """Inspect the weights. Raise BadInput, DataUnavailable."""
        self.config = config
        choice = judge_choice(config.judge)
        self.judge = load_judge(choice)
        self.identity = (choice, judge_weights(choice, manifest)) if isinstance(choice, ServedJudge) else None
        self.inputs: dict[str, str] = {}
        """What the record says of the server."""

    @property
    def title(self) -> str:
        """The model's name for people."""
        return self.identity[0].label if self.identity else self.judge.model

    @contextmanager
    def endpoint(self) -> Iterator[Endpoint]:
        """Yield the endpoint. Raise the error of a server that ended, and BadInput if the weights were saved again."""
        if self.identity is None:
            yield Endpoint.from_environment(self.judge.client)
            return
        choice, weights = self.identity
        exchange = Exchange(Path(str(self.config.exchange)))
        log.info("waiting for the judge's server")
        address = exchange.wait()
        self.inputs = {"judge_vllm": address.vllm, "judge_gpus": address.gpus}
        content = [weights.digest, choice.dtype, choice.max_model_len, address.vllm]
        _no_proxy_on_loopback()
        try:
            yield Endpoint(
                base_url=address.url,
                key=SecretStr(address.key),
                client=self.judge.client,
                served=f"vLLM serving {self.title} ({digest_json(content)[:16]})",
            )
        except Incomplete:
            exchange.check()  # if the server has ended, its reason is the better one
            raise
        weights.check_unchanged()


def _no_proxy_on_loopback() -> None:
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1")))
