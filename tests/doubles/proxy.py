"""A TCP proxy whose connections can be cut, as a server that is killed cuts them."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from tests.airflow_server import free_port


class Proxy:
    """Forwards connections to a port on loopback."""

    def __init__(self, target: int) -> None:
        self.target, self.port = target, free_port()
        self._open: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Accept connections."""
        self._server = await asyncio.start_server(self._forward, "127.0.0.1", self.port)

    async def cut(self) -> None:
        """Accept no connections, and end the open ones, whatever they were doing."""
        self._server.close()
        for writer in [*self._open]:
            writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
            self._open.add(back)
            await asyncio.gather(_copied(reader, back), _copied(there, writer))
            self._open.discard(back)
        except OSError:
            writer.transport.abort()
        finally:
            self._open.discard(writer)


async def _copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()
