"""An OpenAI-compatible endpoint on loopback that answers as a test says, and counts what it answered."""

import base64
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "gpt-4o-2024-08-06"  # what it says it is, when asked for gpt-4o
USAGE = {"prompt_tokens": 400, "completion_tokens": 100, "total_tokens": 500}


@dataclass
class Reply:
    """What goes back: a status with headers and a body, of which ``cut`` leaves the second half out."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False
    wait_s: float = 0.0


def completion(text: str | None, finish: str = "stop", refusal: str | None = None) -> Reply:
    """An answer as a model gives it."""
    message = {"role": "assistant", "content": text, "refusal": refusal}
    choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
    return completion_of([choice])


def completion_of(choices: list[Any], usage: Any = USAGE) -> Reply:
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": choices,
        "usage": usage,
    }
    return Reply(json.dumps(body).encode())


def refused(
    status: int, headers: Mapping[str, str] | None = None, code: str = "x", words: str = "no"
) -> Reply:
    """An error as OpenAI's servers word it."""
    error = {"error": {"message": words, "type": code, "param": None, "code": code}}
    return Reply(json.dumps(error).encode(), status, headers or {})


class Endpoint:
    """The server's side of a test.

    Args:
        samples: rows of ``id``, ``image`` and more; a request is known by its image.
        reply: called with the sample and the number of requests for it before this one.
    """

    def __init__(self, samples: list[dict[str, Any]], reply: Callable[[dict[str, Any], int], Reply]):
        self.samples = {hashlib.sha256(row["image"]).hexdigest(): row for row in samples}
        self.reply = reply
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0
        self.times: list[float] = []
        self.lock = threading.Lock()
        self.url = ""

    def handle(self, request: dict[str, Any], key: str) -> Reply:
        [turn] = request["messages"]
        url = turn["content"][0]["image_url"]["url"]
        sample = self.samples[hashlib.sha256(base64.b64decode(url.split(",", 1)[1])).hexdigest()]
        with self.lock:
            self.requests.append(request)
            self.keys.add(key)
            self.times.append(time.monotonic())
            before = self.asked[sample["id"]]
            self.asked[sample["id"]] += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        reply = self.reply(sample, before)
        time.sleep(reply.wait_s)
        with self.lock:
            self.at_once -= 1
            if reply.status == 200 and not reply.cut:
                self.answered[sample["id"]] += 1
        return reply


@contextmanager
def serving(endpoint: Endpoint) -> Iterator[Endpoint]:
    """Serve for the time of the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            assert self.path.endswith("/models"), self.path
            models = [{"id": MODEL, "object": "model", "created": 1, "owned_by": "a test"}]
            self.answer(Reply(json.dumps({"object": "list", "data": models}).encode()))

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.answer(endpoint.handle(request, self.headers["Authorization"]))

        def answer(self, reply: Reply) -> None:
            with suppress(OSError):  # the client is gone
                self.send_response(reply.status)
                for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body[: len(reply.body) // 2] if reply.cut else reply.body)
            self.close_connection = reply.cut

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
