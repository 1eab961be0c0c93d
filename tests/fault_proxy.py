"""An HTTP proxy in front of a server on this machine that fails on purpose. Loopback only."""

import http.client
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)
_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "proxy-connection"}


class FaultProxy:
    """Passes requests on; `fault` may say "503", "drop" or "truncate" of each instead.

    `fault` is asked with the method, the path and the number of the request, counted from 1.
    `bytes_per_second` limits each answer; `faults` counts what was done.
    """

    def __init__(self, upstream: str) -> None:
        self.host, _, port = upstream.removeprefix("http://").partition(":")
        self.port = int(port)
        self.fault: Callable[[str, str, int], str | None] = lambda method, path, n: None
        self.bytes_per_second: float | None = None
        self.faults: Counter[str] = Counter()
        self.requests = 0
        self.lock = threading.Lock()
        self.url = ""

    def decide(self, method: str, path: str) -> str | None:
        with self.lock:
            self.requests += 1
            what = self.fault(method, path, self.requests)
            if what:
                self.faults[what] += 1
            return what

    def every(self, **kinds: int) -> None:
        """Fail every so many requests: ``every(drop=7)``; at 1, all of them."""
        names = {"busy": "503", "drop": "drop", "truncate": "truncate"}
        self.faults.clear()

        def fault(method: str, path: str, n: int) -> str | None:
            return next((names[kind] for kind, step in kinds.items() if n % step == 0), None)

        self.fault = fault

    def calm(self) -> None:
        self.every()
        self.bytes_per_second = None


def _handler(proxy: FaultProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *arguments: object) -> None:
            return

        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = proxy.decide(self.command, self.path)
            if fault == "drop":
                self._hang_up()
            elif fault == "503":
                self._send(503, [("Content-Type", "application/xml")], SLOW_DOWN)
            else:
                self._pass_on(body, truncate=fault == "truncate")

        def _pass_on(self, body: bytes, *, truncate: bool) -> None:
            upstream = http.client.HTTPConnection(proxy.host, proxy.port, timeout=60)
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP:
                    upstream.putheader(name, value)
            upstream.endheaders(body or None)
            answer = upstream.getresponse()
            data = answer.read()
            headers = [
                (k, v)
                for k, v in answer.getheaders()
                if k.lower() not in _HOP and k.lower() != "content-length"
            ]
            length = answer.getheader("Content-Length") or str(len(data))
            upstream.close()
            self._send(answer.status, headers, data, length=length, truncate=truncate)

        def _send(
            self,
            status: int,
            headers: list[tuple[str, str]],
            data: bytes,
            *,
            length: str | None = None,
            truncate: bool = False,
        ) -> None:
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", length or str(len(data)))
            self.end_headers()
            if self.command == "HEAD":
                return
            for start in range(0, len(data) // 2 if truncate else len(data), 65536):
                part = data[start : start + 65536]
                self.wfile.write(part)
                if proxy.bytes_per_second:
                    time.sleep(len(part) / proxy.bytes_per_second)
            if truncate:
                self._hang_up()

        def _hang_up(self) -> None:
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _handle  # noqa: N815

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is what this is for."""


@contextmanager
def fault_proxy(upstream: str) -> Iterator[FaultProxy]:
    """Run a proxy for the length of a block."""
    proxy = FaultProxy(upstream)
    server = _Server(("127.0.0.1", 0), _handler(proxy))
    proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
