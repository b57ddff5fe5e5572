"""A door in front of an S3 server that can be shut, or made slow: how a network fails."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

_CHUNK = 64 * 1024


class S3Proxy:
    """Passes bytes between clients and a server, both ways."""

    def __init__(self, server: str):
        self._host, port = urlsplit(server).netloc.split(":")
        self._server_port = int(port)
        self._loop = asyncio.new_event_loop()
        self._door: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._delay_s = 0.0
        self.port = 0
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.open()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def open(self) -> None:
        """Let connections in."""
        self._call(self._open())

    def shut(self) -> None:
        """Refuse connections, and reset those that there are."""
        self._call(self._shut())

    def slow_down(self, delay_s: float) -> None:
        """Hold back every piece of 64 KiB, either way, for so long; 0 for no longer."""
        self._delay_s = delay_s

    def close(self) -> None:
        """Shut for good."""
        self.shut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _call(self, coroutine: "asyncio.Future[None] | object") -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()  # type: ignore[arg-type]

    async def _open(self) -> None:
        self._door = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._door.sockets[0].getsockname()[1]

    async def _shut(self) -> None:
        if self._door:
            self._door.close()
            self._door = None
        for writer in list(self._writers):
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(self._host, self._server_port)
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(self._pass_on(reader, back), self._pass_on(there, writer))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while data := await reader.read(_CHUNK):
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # either side has gone, and with it goes the other
        finally:
            self._writers.discard(writer)
            writer.close()


@contextmanager
def s3_proxy(server: str) -> Iterator[S3Proxy]:
    """A proxy in front of ``server``, an endpoint, for the time of the block."""
    proxy = S3Proxy(server)
    try:
        yield proxy
    finally:
        proxy.close()
