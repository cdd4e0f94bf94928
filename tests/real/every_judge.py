"""Judge with every judge that alpaca_eval ships, in one process of the judge's environment.

Prints JSON: for each name the preferences, or the reason why it is rejected; whether the index is that of the installed
package; what became of many pairs at an endpoint with a rate limit, of which a gateway rejects one; the path and
headers of requests to Azure and to a gateway; and what is said of endpoints that are none.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import warnings
from pathlib import Path

from halos_eval.config.alpaca_index import index
from halos_eval.config.judge import Judge, load_judge
from halos_eval.config.judge_client import Client
from halos_eval.data.prompts import PromptSet
from halos_eval.errors import BadInput, HalosEvalError
from halos_eval.stages.judge import sending
from halos_eval.stages.judge.alpaca_eval import evaluate_pairs
from halos_eval.stages.judge.answers import Answers
from halos_eval.stages.judge.client import Completions
from halos_eval.stages.judge.endpoint import Endpoint
from halos_eval.stages.judge.installed import build_index
from tests.doubles.judge import FORBIDDEN, Faults, Handler, Server, options, worth


def main() -> None:
    """Read the pairs (instruction, output, reference) and a folder from the command line."""
    warnings.simplefilter("ignore")
    pairs, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
    Handler.faults = Faults(options().parse_args([]))
    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        os.environ["OPENAI_API_KEY"] = "sk-any"
        url = f"http://127.0.0.1:{server.server_port}/v1"
        found = {name: judged(name, pairs, folder / name, url) for name in index().judges}
        Handler.faults = Faults(options().parse_args(["--rate", "15"]))
        many = [[f"instruction {number}", worth(f"mine {number}", 3), worth("theirs", 1)] for number in range(60)]
        many[7][1] += FORBIDDEN
        limited = judged("alpaca_eval_clf_gpt4_turbo", many, folder / "limited", url)
        counted = Handler.faults.counts()
        judged("gpt4_turbo_clf", many[:7], folder / "limited", url)  # another prompt: other requests
        judged("weighted_alpaca_eval_gpt4_turbo", many[:7], folder / "limited", url)  # the same ones, read otherwise
        paid_again = Handler.faults.counts()["answered"] - counted["answered"]
        os.environ |= {"AZURE_OPENAI_API_KEY": "sk-azure", "JUDGE_TOKEN": "sk-gateway"}
        azure = requested(Client(azure_endpoint=url.removesuffix("/v1"), api_version="2024-10-21"), pairs, folder)
        wrong = {"path": url.removesuffix("/v1"), "port": "http://127.0.0.1:9/v1", "answer": url}
        Handler.faults = Faults(options().parse_args(["--garbage", "1"]))
        none = {case: failed(address, pairs, folder / "none") for case, address in wrong.items()}
        Handler.faults = Faults(options().parse_args([]))
        del os.environ["OPENAI_API_KEY"]
        headers = {"X-Team-Key": "${JUDGE_TOKEN}"}
        gateway = requested(Client(base_url=f"{url}/team", default_headers=headers), pairs, folder)
        server.shutdown()
    limited |= {"counted": counted, "paid_again": paid_again}
    found = {"index": build_index() == index(), "judges": found, "limited": limited, "none": none}
    json.dump(found | {"azure": azure, "gateway": gateway}, sys.stdout)


def failed(url: str, pairs: list[list[str]], folder: Path) -> str:
    """Return the error of a judge at an endpoint that is none."""
    judge = load_judge("chatgpt")
    sending._back_off = lambda failures: 0.0
    client = judge.client.model_copy(update={"base_url": url})
    try:
        run(judge, pairs, Completions(Endpoint.from_environment(client), judge, Answers(str(folder)), 16, 60))
    except HalosEvalError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def requested(client: Client, pairs: list[list[str]], folder: Path) -> tuple[str, dict[str, str]]:
    """Return the path and the headers with which a judge asks by ``client``."""
    judge = load_judge("chatgpt").model_copy(update={"client": client})
    run(judge, pairs, Completions(Endpoint.from_environment(client), judge, Answers(str(folder / "client")), 16, 60))
    return Handler.last


def judged(name: str, pairs: list[list[str]], folder: Path, url: str) -> dict:
    """Return the preferences of one judge, or why it is rejected."""
    try:
        judge = load_judge(name)
    except BadInput as error:
        return {"rejected": str(error)}
    endpoint = Endpoint.from_environment(judge.client.model_copy(update={"base_url": url}))
    completions = Completions(endpoint, judge, Answers(str(folder)), 16, 60)
    figures, annotations = run(judge, pairs, completions)
    completions.answers.finish()
    return {
        "scored": figures["n_total"],
        "refused": completions.refused,
        "preferences": {one["instruction"]: one["preference"] for one in annotations},
        "asked": completions.asked,
    }


def run(judge: Judge, pairs: list[list[str]], completions: Completions) -> tuple[dict, list[dict]]:
    """Return alpaca_eval's figures for the pairs, and the annotations. Other columns are ignored."""
    extra = {"output_1": "x", "output_2": "y", "generator_1": "z", "preference": 1.0, "index": 0, "is_switched": False}
    rows = [{"instruction": instruction, "output": output, **extra} for instruction, output, _ in pairs]
    references = tuple({"instruction": instruction, "output": output, **extra} for instruction, _, output in pairs)
    return evaluate_pairs(judge, rows, PromptSet(name="r", rows=references, digest="d"), completions, None, "mine")


if __name__ == "__main__":
    main()
