"""A small HTTP server for probes, in its own threads."""

from __future__ import annotations

import contextlib
import socket as _std
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from tomada._address import format_address
from tomada._advice import OF_BINDING, advise, start_thread
from tomada._reports import LogLimiter, logger
from tomada._server.health import TEXT, Answer
from tomada._server.wakeup import Wakeup

# The maximum number of connections, and how long each may take, in seconds.
CONNECTIONS, PATIENCE = 16, 5.0
LOOK = 1.0
# How long to wait after a connection could not be accepted, in seconds.
RETRY = 0.1


class HealthServer:
    """A small HTTP server in its own threads, which no client can block.

    It binds its address at once, and answers after :meth:`start`. If there are too many
    connections, it closes the oldest. It also closes each connection that takes too long.

    :param routes: The function that answers each path.
    """

    def __init__(self, address: Any, routes: dict[str, Callable[[], Answer]]) -> None:
        try:
            self._http = _Http(address, routes)
        except OSError as error:
            advise(error, f"{format_address(address)} (health)", OF_BINDING)
            raise
        self._wakeup = Wakeup()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="tomada.Server-health", daemon=True)
        self.address: Any = self._http.socket.getsockname()

    def start(self) -> None:
        """Start to answer requests."""
        start_thread(self._thread)

    def _run(self) -> None:
        while not self._is_closing:
            self._wakeup.wait(LOOK, (self._http.fileno(),))
            self._http.handle_request()
            self._http.end_overdue()

    def forget(self) -> None:
        """Close the socket in a forked process, so that the port is free when this one exits."""
        self._http.socket.close()

    def close(self) -> None:
        """End all connections, and free the address."""
        self._is_closing = True
        self._wakeup.notify()
        if self._thread.ident is not None:
            self._thread.join(PATIENCE)
        self._http.server_close()
        self._http.end_overdue(patience=0.0)
        self._wakeup.close()


class _Http(HTTPServer):
    request_queue_size = 64

    def __init__(self, address: Any, routes: dict[str, Callable[[], Answer]]) -> None:
        host, port = address[:2]
        flags = _std.AI_PASSIVE
        found = _std.getaddrinfo(host or None, port, 0, _std.SOCK_STREAM, 0, flags)
        self.address_family, _, _, _, name = found[0]
        self.routes = routes
        self.limiter = LogLimiter()
        self._lock = threading.Lock()
        # The connections and when they began, the oldest first.
        self._begun: dict[_std.socket, float] = {}
        address_of_any_family: Any = name
        super().__init__(address_of_any_family, _Request)
        self.socket.setblocking(False)

    def server_bind(self) -> None:
        """Bind the address. Unlike the base class, do not look up the name of this machine."""
        self.socket.setsockopt(_std.SOL_SOCKET, _std.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "tomada", self.socket.getsockname()[1]

    def get_request(self) -> tuple[Any, Any]:
        """Accept a connection. If there is no free descriptor, wait before the next attempt."""
        try:
            return super().get_request()
        except BlockingIOError:
            raise
        except OSError:
            time.sleep(RETRY)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a request in a thread."""
        with self._lock:
            oldest = next(iter(self._begun)) if len(self._begun) >= CONNECTIONS else None
            self._begun[request] = time.monotonic()
            if oldest is not None:
                self._end(oldest)
        thread = threading.Thread(
            target=self._answer, args=(request, client_address), name="tomada.Server-health-request"
        )
        thread.daemon = True
        try:
            start_thread(thread)
        except OSError:
            self._forget(request)
            raise

    def _answer(self, request: Any, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except Exception:  # noqa: BLE001 - it affects one client only
            self.handle_error(request, client_address)
        finally:
            self._forget(request)
            self.shutdown_request(request)

    def _forget(self, request: Any) -> None:
        with self._lock:
            self._begun.pop(request, None)

    def end_overdue(self, patience: float = PATIENCE) -> None:
        """End the connections that have taken too long."""
        with self._lock:
            now = time.monotonic()
            for request in [one for one, begun in self._begun.items() if begun + patience <= now]:
                self._end(request)

    def _end(self, request: _std.socket) -> None:
        """Shut down a connection, so that its thread ends."""
        del self._begun[request]
        with contextlib.suppress(OSError):
            request.shutdown(_std.SHUT_RDWR)

    def handle_error(self, _request: Any, client_address: Any) -> None:
        """Log an error of a request, at a limited rate."""
        suffix = self.limiter.suffix("health")
        if suffix is not None:
            logger.debug("a health request of %s failed%s", client_address, suffix, exc_info=True)


class _Request(BaseHTTPRequestHandler):
    server: _Http
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "tomada", ""
    timeout = PATIENCE

    def do_GET(self) -> None:  # the base class calls it
        """Answer a request."""
        self.close_connection = True
        status, kind, body = self._answer()
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_HEAD = do_GET  # noqa: N815 - as above

    def _answer(self) -> Answer:
        route = self.server.routes.get(self.path.partition("?")[0])
        if route is None:
            return 404, TEXT, f"there are {', '.join(self.server.routes)}\n"
        try:
            return route()
        except Exception:  # noqa: BLE001 - the program's own metrics may raise anything
            suffix = self.server.limiter.suffix("answer")
            if suffix is not None:
                logger.exception("cannot answer %s%s", self.path, suffix)
            return 500, TEXT, "see the log\n"

    def log_message(self, *_: object) -> None:
        """Log nothing: probes come every few seconds."""
