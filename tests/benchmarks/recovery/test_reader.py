"""Against a small server that streams what it is told, and breaks off where it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

from benchmarks.recovery.reader import Question, Reader, asked

QUESTION = Question("m", "hello", 3)
COMES_BACK = Question("m", "hello", 3, is_resumable=True)
DONE = "data: [DONE]\n\n"


def event(number: int, **extra: object) -> str:
    body = {"choices": [{"index": 0, "token_ids": [number]}], **extra}
    return f"id: answer:{number}\ndata: {json.dumps(body)}\n\n"


@contextmanager
def serving(*answers: str) -> Iterator[tuple[httpx.Client, list[tuple[str, str | None]]]]:
    """One answer per request; the requests' paths and last event ids."""
    asked_for: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def do_GET(self) -> None:
            answer = answers[len(asked_for)]
            asked_for.append((self.path, self.headers["Last-Event-ID"]))
            is_broken = answer.endswith("...")
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer) + is_broken))
            self.end_headers()
            self.wfile.write(answer.encode())

        def log_message(self, *words: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{server.server_port}") as client:
            yield client, asked_for
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_tokens_chains_and_usage_are_taken_from_the_events() -> None:
    nodes = {"nodes": [{"name": "a", "layers": "0-3"}, {"name": "b", "layers": "4-7"}]}
    used = {"prompt_tokens": 7, "prompt_tokens_details": {"cached_tokens": 2}}
    usage = f"data: {json.dumps({'choices': [], 'usage': used})}\n\n"
    with serving(event(1, decentllm=nodes) + event(2) + usage + DONE) as (client, _):
        heard = asked(client, QUESTION)
    assert (heard.tokens, heard.is_done, heard.error, heard.num_prompt_tokens) == ([1, 2], True, "", 7)
    assert heard.num_cached_tokens == 2
    assert [chain.nodes for chain in heard.chains] == [("a", "b")]
    assert len(heard.times_s) == 2


def test_an_error_ends_the_answer() -> None:
    error = f"data: {json.dumps({'error': {'code': 'kv_full', 'message': 'no room'}})}\n\n"
    with serving(event(1) + error) as (client, _):
        assert asked(client, QUESTION).error == "kv_full"


def test_an_answer_that_is_cut_short_is_no_whole_one() -> None:
    with serving(event(1)) as (client, _):
        assert asked(client, QUESTION).error == "cut_short"
    with serving(event(1) + "...") as (client, _):
        assert asked(client, QUESTION).error == "RemoteProtocolError"


def test_who_may_come_back_does_and_goes_on_behind_what_it_has() -> None:
    with serving(event(1) + "...", event(2) + DONE) as (client, asked_for):
        reader = Reader(client, COMES_BACK)
        heard = reader.wait()
    assert (heard.tokens, heard.num_connections, heard.error) == ([1, 2], 2, "")
    assert asked_for[1] == ("/v1/chat/completions/answer/events", "answer:1")


def test_waiting_for_more_tokens_than_come_ends_with_the_answer() -> None:
    with serving(event(1) + DONE) as (client, _):
        assert not Reader(client, QUESTION).wait_for_tokens(2)
