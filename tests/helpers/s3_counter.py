"""A door in front of an S3 server that counts what passes (which objects were asked for, and their bytes) and
can refuse some of it."""

import http.client
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Counted:
    """What passed so far; keys are ``bucket/key`` as in a location."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.bytes_read: Counter[str] = Counter()

    def requests_of(self, part: str) -> int:
        """Requests of any kind for objects whose name holds ``part``."""
        return sum(count for key, count in self.requests.items() if part in key)

    def bytes_of(self, part: str) -> int:
        """Bytes that were read from objects whose name holds ``part``."""
        return sum(count for key, count in self.bytes_read.items() if part in key)

    def clear(self) -> None:
        self.requests.clear()
        self.bytes_read.clear()


@contextmanager
def s3_counter(
    server: str, refuse: Callable[[str, str], bool] = lambda command, path: False
) -> Iterator[tuple[str, Counted]]:
    """Pass requests on to ``server``, an endpoint; yields the endpoint to use and the counts.

    Those for which ``refuse(command, path)`` is true are answered "access denied" instead.
    """
    counted = Counted()
    lock = threading.Lock()
    address = urlsplit(server).netloc

    class Door(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if refuse(self.command, self.path):
                content = b"<Error><Code>AccessDenied</Code></Error>"
                self.send_response(403)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                return
            connection = http.client.HTTPConnection(address, timeout=60)
            # All headers stay as they are, the host too: the client signed them.
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(data)
            answer = connection.getresponse()
            content = answer.read()
            # A listing has its prefix in the query; it reads no object.
            key = unquote(urlsplit(self.path).path).lstrip("/")
            with lock:
                counted.requests[key] += 1
                if self.command == "GET":
                    counted.bytes_read[key] += len(content)
            self.send_response_only(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
            if length is not None and answer.status != 204:
                self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(content)
            connection.close()

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on

        def log_message(self, format: str, *args: object) -> None:
            pass

    door = ThreadingHTTPServer(("127.0.0.1", 0), Door)
    thread = threading.Thread(target=door.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{door.server_port}", counted
    finally:
        door.shutdown()
        door.server_close()
        thread.join()
