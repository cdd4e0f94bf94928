#!/usr/bin/env python3
"""Serve a judge with OpenAI's API on loopback, which can also fail in the ways that real endpoints fail.

    python tests/doubles/judge.py --port 0           # prints OPENAI_BASE_URL=http://127.0.0.1:PORT/v1

It reads prompts of AlpacaEval 2's classification template and answers with the log-probabilities of the tokens m and M.
If the outputs say what they are worth (``worth``), it answers any prompt, in the form that the request asks for: a
ranking, scores, a name, a call of a tool, or probabilities.
Its preference between two outputs follows from their text alone (``preference``), whichever is shown first, so a test
can compute the win rate that a judge's stage must arrive at. GET /stats counts the requests by what became of them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import re
import socket
import threading
import time
from collections import Counter, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

UNDECIDED = "[the judge has no answer to this output]"
"""An output with this text gets the answer "?", which no parser reads."""
BIASED = "[the judge prefers what it sees first to this output, and this output if it sees it first]"
FORBIDDEN = "[a gateway lets no prompt with this text pass]"


def preference(instruction: str, output: str, other: str) -> float:
    """Return the probability with which ``output`` is named the better one; ``other`` has what is left of 1."""
    mine, others = (_quality(instruction, text) for text in (output, other))
    return mine / (mine + others)


def _quality(instruction: str, output: str) -> float:
    digest = hashlib.sha256(f"{instruction.strip()}\0{output.strip()}".encode()).digest()
    return 0.01 + int.from_bytes(digest[:4]) / 2**32


def read_pair(prompt: str) -> tuple[str, str, str] | None:
    """Return the instruction, and the outputs shown as m and as M; None for any other prompt."""
    found = []
    for opening, closing in (
        ('"instruction": """', '""",\n}\n'),
        ('"model_identifier": "m",\n        "output": """', '"""\n    },\n'),
        ('"model_identifier": "M",\n        "output": """', '"""\n    }\n}\n'),
    ):
        _, opened, rest = prompt.partition(opening)
        text, closed, prompt = rest.partition(closing)
        if not (opened and closed):
            return None
        found.append(text)
    instruction, first, second = found
    return instruction, first, second


def answer(prompt: str) -> dict[str, float]:
    """Return the tokens with which the judge may answer, and their probabilities."""
    pair = read_pair(prompt)
    if pair is None or any(UNDECIDED in output for output in pair[1:]):
        return {"?": 0.8, "Neither": 0.2}
    biased = any(BIASED in output for output in pair[1:])
    probability = 0.75 if biased else preference(*pair)
    return {"m": probability, "M": 1 - probability}


WORTH = re.compile(r"\(worth (\d+)\)")
NAMES = (("m", "M"), ("model_1", "model_2"), ("A", "B"))
"""How templates call the first and the second output."""


def worth(text: str, quality: int) -> str:
    """Return an output of a quality from 1 to 9."""
    return f"{text} (worth {quality})"


def qualities(prompt: str) -> tuple[int, int] | None:
    """Return the qualities of the outputs in the order in which a prompt shows them; None for any other prompt."""
    found = WORTH.findall(prompt)
    return (int(found[-2]), int(found[-1])) if len(found) >= 2 else None


def answer_in_form(request: dict[str, Any], prompt: str, shown: tuple[int, int]) -> dict[str, Any]:
    """Return the choice of a chat completion: its message, and log-probabilities if the request wants them."""
    if request.get("tools"):
        return {"message": _call(request["tools"][0]["function"], prompt, shown)}
    if request.get("logprobs"):
        return _weighed(request, prompt, shown)
    return {"message": {"role": "assistant", "content": _text(prompt, shown)}}


def _names(prompt: str) -> tuple[str, str]:
    names = [pair for pair in NAMES if all(re.search(rf"[\"' ]{name}[\"',:]", prompt) for name in pair)]
    return names[0] if names else NAMES[-1]


def _ranking(prompt: str, shown: tuple[int, int]) -> list[dict[str, Any]]:
    first, second = _names(prompt)
    return [{"model": first, "rank": 1 + (shown[1] > shown[0])}, {"model": second, "rank": 1 + (shown[0] >= shown[1])}]


def _letter(shown: tuple[int, int]) -> str:
    return "Output (a)" if shown[0] >= shown[1] else "Output (b)"


def _text(prompt: str, shown: tuple[int, int]) -> str:
    if "Assistant 1's Answer" in prompt:
        return f"{shown[0]} {shown[1]}\nBecause of what they are worth."
    return str(_ranking(prompt, shown)) if "model_1" in prompt else _letter(shown)


def _call(function: dict[str, Any], prompt: str, shown: tuple[int, int]) -> dict[str, Any]:
    known = {
        "concise_explanation": "Because of what they are worth.",
        "ordered_models": _ranking(prompt, shown),
        "best_output": _letter(shown),
    }
    arguments = {name: known[name] for name in function["parameters"]["properties"]}
    called = {"name": function["name"], "arguments": json.dumps(arguments)}
    return {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": called}]}


def _weighed(request: dict[str, Any], prompt: str, shown: tuple[int, int]) -> dict[str, Any]:
    shares = zip(_names(prompt), (quality / sum(shown) for quality in shown), strict=True)
    top = sorted(({"token": name, "logprob": math.log(share)} for name, share in shares), key=lambda t: -t["logprob"])
    thoughts = ["Both", " are", " good", "\n"] if request.get("max_tokens", 1) > 1 else []
    before = [{"token": text, "logprob": -0.1, "top_logprobs": [{"token": text, "logprob": -0.1}]} for text in thoughts]
    content = "".join([*thoughts, top[0]["token"]])
    return {
        "message": {"role": "assistant", "content": content},
        "logprobs": {"content": [*before, top[0] | {"top_logprobs": top}]},
    }


class Faults:
    """Decides what becomes of each request."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self._random = random.Random(options.seed)
        self._lock = threading.Lock()
        self._recent: deque[float] = deque()
        self._counts: Counter[str] = Counter()

    def count(self, outcome: str, number: int = 1) -> None:
        """Add to the statistics."""
        with self._lock:
            self._counts[outcome] += number

    def counts(self) -> dict[str, int]:
        """Return the statistics."""
        with self._lock:
            return dict(self._counts)

    def draw(self) -> str:
        """Return what becomes of the next request: 429, 500, dropped, hung, garbage or, if nothing is wrong, fine."""
        options = self.options
        with self._lock:
            drawn = self._random.random()
            if options.rate and self._over_rate():
                return "429"
        for outcome, option in OPTION_OF.items():
            drawn -= getattr(options, option)
            if drawn < 0:
                return outcome
        return "fine"

    def _over_rate(self) -> bool:
        now = time.monotonic()
        while self._recent and self._recent[0] <= now - 1:
            self._recent.popleft()
        over = len(self._recent) >= self.options.rate
        if not over:
            self._recent.append(now)
        return over


OPTION_OF = {"429": "limited", "500": "errors", "dropped": "drops", "hung": "hang", "garbage": "garbage"}
HANG_SECONDS = 120  # longer than any client of these tests waits


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"
    faults: Faults
    last: tuple[str, dict[str, str]]
    """Path and headers of the last request, with names in small letters."""

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        """Give the statistics."""
        if self.path == "/stats":
            self._send(200, self.faults.counts())
        else:
            self._send(404, {})

    def do_POST(self) -> None:
        """Judge, or fail."""
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if "/chat/completions" not in self.path:
            return self._send(404, {"error": {"message": "there is no such path"}})
        request = json.loads(data)
        type(self).last = self.path, {name.lower(): value for name, value in self.headers.items()}
        if not self.path.startswith(("/v1/", "/openai/")):
            return self._send(404, "<html>There is nothing here.</html>")
        outcome = self.faults.draw()
        if outcome != "fine":
            self.faults.count(outcome)
            return self._fail(outcome)
        time.sleep(self.faults.options.latency)
        return self._judge(request)

    def _judge(self, request: dict[str, Any]) -> None:
        prompt = "\n".join(message["content"] for message in request["messages"])
        if FORBIDDEN in prompt:
            self.faults.count("403")
            return self._send(403, "<html>Forbidden</html>")
        if shown := qualities(prompt):
            self.faults.count("answered")
            choice = answer_in_form(request, prompt, shown)
            return self._send(
                200, _reply(request, {"index": 0, "finish_reason": "stop", **choice}, len(prompt.split()))
            )
        tokens = [
            {"token": token, "bytes": list(token.encode()), "logprob": math.log(probability)}
            for token, probability in sorted(answer(prompt).items(), key=lambda item: -item[1])
        ]
        said = tokens[0]["token"]
        billed = len(prompt.split())
        self.faults.count("unknown pair" if said == "?" else "answered")
        self.faults.count("prompt tokens billed", billed)
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "length"}
        if request.get("logprobs"):
            choice["logprobs"] = {"content": [tokens[0] | {"top_logprobs": tokens}]}
        return self._send(200, _reply(request, choice, billed))

    def _fail(self, outcome: str) -> None:
        if outcome == "429":
            error = {"code": "rate_limit_exceeded", "message": "too many requests", "type": "requests"}
            self._send(429, {"error": error}, {"Retry-After-Ms": "200"})
        elif outcome == "500":
            self._send(500, {"error": {"message": "something is broken", "type": "server_error"}})
        elif outcome == "garbage":
            self._send(200, "<html>This is a proxy.</html>")
        else:
            if outcome == "hung":
                time.sleep(HANG_SECONDS)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _reply(request: dict[str, Any], choice: dict[str, Any], billed: int) -> dict[str, Any]:
    usage = {"prompt_tokens": billed, "completion_tokens": 1, "total_tokens": billed + 1}
    about = {"id": "chatcmpl-double", "object": "chat.completion", "created": 0, "model": request["model"]}
    return about | {"choices": [choice], "usage": usage, "system_fingerprint": "fp_double"}


class Server(ThreadingHTTPServer):
    """A server that a client may send all its requests to at once."""

    request_queue_size = 1024
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Say nothing of clients that hang up: those under test are killed."""


def options() -> argparse.ArgumentParser:
    """Return the options of the command."""
    parser = argparse.ArgumentParser(description="Serve a judge with OpenAI's API on loopback.")
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--latency", type=float, default=0, help="seconds before each answer")
    parser.add_argument("--rate", type=float, default=0, help="requests a second; those above it get 429 (0: no limit)")
    parser.add_argument("--limited", type=float, default=0, help="share of requests that get 429")
    parser.add_argument("--errors", type=float, default=0, help="share of requests that get 500")
    parser.add_argument("--drops", type=float, default=0, help="share of connections that are cut")
    parser.add_argument("--garbage", type=float, default=0, help="share of answers that are no JSON")
    parser.add_argument("--hang", type=float, default=0, help=f"share of requests that hang for {HANG_SECONDS} s")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    return parser


def main() -> None:
    """Serve until the process is ended."""
    Handler.faults = Faults(options().parse_args())
    with Server(("127.0.0.1", Handler.faults.options.port), Handler) as server:
        print(f"OPENAI_BASE_URL=http://127.0.0.1:{server.server_port}/v1", flush=True)  # noqa: T201 (how others learn the port)
        server.serve_forever()


if __name__ == "__main__":
    main()
