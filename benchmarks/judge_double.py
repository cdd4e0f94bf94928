"""A judge at an OpenAI-compatible endpoint that takes a fixed time for each answer, and little of the processor.

python -m benchmarks.judge_double LATENCY      in seconds; prints its address

Its preference follows from the prompt alone, so every client that sends the same prompts gets the same win rate.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import sys


class Connection(asyncio.Protocol):
    """One connection, with one request after the other."""

    latency = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = transport
        self.received = bytearray()

    def data_received(self, data: bytes) -> None:
        """Answer as soon as a request is complete."""
        self.received += data
        head, end, body = bytes(self.received).partition(b"\r\n\r\n")
        if not end:
            return
        fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:])
        if len(body) >= int(fields.get(b"content-length", 0)):
            self.received.clear()
            asyncio.get_running_loop().call_later(self.latency, self._answer, body)

    def _answer(self, body: bytes) -> None:
        if self.transport.is_closing():
            return
        data = json.dumps(answer(json.loads(body))).encode()
        self.transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data)
        )


def answer(request: dict) -> dict:
    """Return a chat completion with the probabilities of m and M."""
    prompt = "\n".join(message["content"] for message in request["messages"])
    share = (1 + int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4])) / (2 + 2**32)
    top = [{"token": token, "bytes": None, "logprob": math.log(one)} for token, one in (("m", share), ("M", 1 - share))]
    top.sort(key=lambda token: -token["logprob"])
    said = top[0]["token"]
    choice = {
        "index": 0,
        "finish_reason": "length",
        "message": {"role": "assistant", "content": said},
        "logprobs": {"content": [top[0] | {"top_logprobs": top}]},
    }
    tokens = len(prompt) // 4
    usage = {"prompt_tokens": tokens, "completion_tokens": 1, "total_tokens": tokens + 1}
    about = {"id": "chatcmpl-double", "object": "chat.completion", "created": 0, "model": request["model"]}
    return about | {"choices": [choice], "usage": usage}


async def serve(latency: float) -> None:
    """Serve until the process is ended."""
    Connection.latency = latency
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1])))
