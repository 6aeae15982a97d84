"""Servers, which call a handler with each datagram and send its replies in batches."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack, overload

from tomada._address import format_address
from tomada._advice import OF_OPENING, advise, advised
from tomada._server.context import Context
from tomada._server.foreground import serve_in_foreground
from tomada._server.lifecycle import Lifecycle
from tomada._server.listeners import open_listeners
from tomada._server.run import Run
from tomada._server.settings import LONGEST_DRAIN, Settings
from tomada._server.steering import Key, key
from tomada._socket_options import SocketOptions

if TYPE_CHECKING:
    import threading

    from tomada._core import DtlsContext, DtlsSession, Guard, ServerStats
    from tomada._server.options import (
        BatchHandler,
        DatagramHandler,
        DataHandler,
        Handler,
        Lifespan,
        Loop,
        ServerOptions,
        Takes,
        TimedHandler,
    )
    from tomada._server.steering import Steering
    from tomada._sinks.sink import Sink

__all__ = ["Server", "key", "serve"]


def _sink_of(handler: Any) -> Sink | None:
    """Return a handler if it is a sink.

    If the sinks module has not been imported (this function does not import it), no handler can be
    a sink.
    """
    sinks = sys.modules.get("tomada._sinks.sink")
    return handler if sinks is not None and isinstance(handler, sinks.Sink) else None


class Server:
    """Receives datagrams in batches, calls a handler, and sends its replies in batches.

    Each reply is sent from the address that the request was sent to, which may differ from the
    machine's default address. Datagrams are never truncated. If a handler raises an exception, or
    returns a value of the wrong type or a reply that is too long, the error is logged under
    ``tomada`` and counted, and the server continues. The server does not call the handler with
    datagrams whose source is the server's own address, because the reply would arrive as the next
    request.

    :param address: ``(host, port)`` for IPv4 or IPv6, or an ``AF_UNIX`` path or abstract name. Port
        0 means any free port. ``"::"`` also accepts IPv4, whose peers have addresses like
        ``("::ffff:127.0.0.1", 1234, 0, 0)``. ``None`` means the sockets passed by systemd
        (``LISTEN_FDS``) or, if one is given, ``sock`` or ``fd``.
    :param handler: Called with each datagram. It returns the reply: a bytes-like object (an empty
        one sends an empty datagram), or ``None`` for no reply. In each process, it is called by one
        thread, or by ``threads`` threads at the same time. If it is a coroutine function (``async
        def``), each call is a task on the worker's event loop, started eagerly on Python 3.12 and
        newer, in a copy of the context (:mod:`contextvars`) in which the lifespan was entered. If
        it is a :class:`tomada.sinks.Sink`, it publishes the datagrams.
    :param takes: The handler's arguments. ``"data"``: ``(data, address)``. ``"datagram"``: one
        :class:`tomada.Datagram`, with the kernel's metadata. ``"batch"``: a list of pairs ``(data,
        address)``; the handler returns an iterable with the reply (or ``None``) to each, or
        ``None`` for no replies at all. ``"timed"``: a list of triples ``(data, address,
        timestamp_ns)``; the handler returns the same as for ``"batch"``. The timestamp is when the
        kernel received the datagram, in nanoseconds since 1970, or ``None``.
    :param workers: The number of worker processes. With 1, a thread of this process calls the
        handler. With more, :meth:`start` forks them, each with its own socket (``SO_REUSEPORT``),
        and a supervisor watches them: a worker that dies is restarted with backoff, and its socket
        queues datagrams in the meantime. If a worker cannot start during :meth:`start`, the server
        stops with the worker's error. Later, it is tried again every few seconds, and the other
        workers continue; the server stops once every worker has failed five times in a row, or
        hangs while it starts. Forking copies this process, so start such a server before you start
        any other threads.
    :param threads: The number of threads, for free-threaded interpreters.
    :param init: Called once in each worker before it receives datagrams: in each process of
        ``workers``, or in each thread of the server.
    :param exit: Called once in each worker whose ``init`` has returned, after the last datagram has
        been handled: when the server stops, when the worker is replaced (SIGHUP), and when a
        handler raises :class:`SystemExit`, but not when the worker is killed. A worker process then
        exits like a Python program: it waits for threads, runs the :mod:`atexit` functions
        registered in the worker, and flushes files. All of this may take at most the rest of
        ``drain`` plus one second. Exceptions are logged.
    :param lifespan: A function that takes the server and returns a context manager, synchronous or
        asynchronous, such as a function decorated with :func:`contextlib.contextmanager` or
        :func:`contextlib.asynccontextmanager`. Each worker enters it after ``init``, before its
        first datagram. The worker exits the lifespan once, after its last datagram and before
        ``exit``, in the same cases as ``exit``. The value that the lifespan yields is
        :attr:`state`. An exception on entry is handled like an exception from ``init``; an
        exception on exit is logged. If the server stops while a worker process is entering the
        lifespan, the process first finishes entering, within ``drain`` plus one second. A thread
        that is still entering the lifespan is left running, and exits the lifespan as soon as it
        has finished entering it.
    :param loop: The event loop of each worker: ``"tomada"`` (:class:`tomada.asyncio.EventLoop`, the
        default), ``"asyncio"`` (asyncio's own loop, unlike in :func:`tomada.asyncio.run`),
        ``"uvloop"``, or a function that creates one. A server has an event loop if its handler or
        its lifespan is async, or if ``loop`` is given; the event loop then also calls a synchronous
        handler.
    :param max_concurrency: How many calls to an async handler may run at once in each worker. At
        the limit, the worker stops receiving: datagrams wait in the kernel's buffer and, once that
        is full, are dropped and counted (``stats().kernel_drops``). With the default of 1,000, the
        tasks use at most a few megabytes of memory, and each call can open a file descriptor within
        the usual limit of 1,024 per process.
    :param max_requests: Replace a worker after about this many datagrams. Each worker's limit is
        reduced by a random amount of up to 20 %, so that workers are not all replaced at once. The
        new worker starts before the old one drains, as on SIGHUP. The limit is checked once per
        second. This needs ``workers=2`` or more.
    :param max_age: Replace a worker after this many seconds, reduced by a random amount in the same
        way.
    :param steering: Which worker receives a datagram. ``"hash"``: always the same one for each
        peer. ``"cpu"``: the one that belongs to the CPU that received the datagram. ``"random"``:
        any. :func:`tomada.key`: always the same one for each value of an identifier in the payload.
    :param drain: The maximum time in seconds for handling queued datagrams when the server stops;
        ``math.inf`` means no limit. Calls to an async handler that are still running after that
        time are cancelled and counted (``stats().cancelled``).
    :param rcvbuf: The size of each receive buffer in bytes. If the kernel grants less (sysctl
        ``net.core.rmem_max``), the server logs a warning.
    :param pacing: The maximum send rate of each socket, in bytes per second: see
        :attr:`tomada.socket.socket.pacing`.
    :param gro: Whether the kernel may deliver coalesced datagrams (``UDP_GRO``). With a
        :func:`tomada.key` as ``steering``, the kernel never does so.
    :param spin: How long to poll for the next datagram before sleeping, in seconds. Polling
        shortens round trips but keeps a core busy. A server on an event loop does not spin.
    :param coalesce: How long to collect datagrams, after the first one, before calling the handler,
        in seconds, up to 60. This saves CPU time when there are many datagrams, at the cost of
        latency: see :attr:`tomada.socket.socket.coalesce`. A server that is stopping does not wait
        for more.
    :param groups: Multicast groups to join, each an address or the arguments of
        :meth:`tomada.socket.socket.join_group`. All workers then share one socket, because separate
        sockets would each receive a copy of every datagram.
    :param health: ``(host, port)`` at which to answer HTTP probes: ``/live``, ``/ready`` (status
        503 until the server has started, and again once :meth:`stop` is called, before any datagram
        is refused) and ``/metrics`` for Prometheus (``tomada[metrics]``). The HTTP server answers
        anyone, so make sure that outsiders cannot reach this address. ``/ready`` also returns
        status 503 if no worker is running, and ``/live`` if datagrams are waiting for a running
        worker that has received none for 30 seconds.
    :param access_log: Log one in every ``access_log`` datagrams that a worker receives, to the
        logger ``tomada.access``: the peer, the number of bytes, the time in the handler, and the
        outcome. 0 logs none.
    :param guard: A :class:`tomada.Guard` for received datagrams and replies. Each worker enforces
        the limits separately, on the datagrams that it receives itself; the guard's counters are
        totals over all workers.
    :param proxy: The networks of trusted proxies (load balancers), such as ``["10.0.0.0/8"]``. Each
        of their datagrams must begin with a PROXY protocol header (version 2), which contains the
        client's address. The handler, the guard and the log see the client's address, and replies
        go back through the proxy. Datagrams from these networks without a valid header are refused,
        and so are datagrams from other addresses that have a header (``stats().proxy_malformed``
        and ``proxy_untrusted``). All other datagrams count as sent directly by clients.
    :param proxy_flows: For proxies that add a header only to the first datagram of each flow (the
        datagrams from one address and port of the proxy): how long a flow may be idle before the
        proxy ends it, in seconds. A flow must stay with its worker, so this needs
        ``steering="hash"``; a worker that replaces another one refuses its predecessor's flows
        until they begin again.
    :param dtls: A :class:`tomada.dtls.Context` of ``PROTOCOL_DTLS_SERVER``. The handler then gets
        decrypted datagrams, from peers with a session, and its replies are encrypted. Sending a
        datagram to a peer without a session is an error. Each worker holds the sessions of its own
        peers, so several workers need ``steering="hash"`` and a socket each, which they do not have
        with ``sock``, ``fd`` or ``groups``. Cannot be combined with ``proxy``.
    :param sock: A bound socket to use instead of an address. The caller keeps ownership.
    :param fd: The file descriptor of a bound socket. The server takes ownership of it.

    A server can be started and stopped only once. You can call all methods from any thread and from
    signal handlers.
    """

    @overload
    def __init__(
        self,
        address: Any,
        handler: DataHandler | Sink,
        *,
        takes: Literal["data"] = "data",
        **options: Unpack[ServerOptions],
    ) -> None: ...

    @overload
    def __init__(
        self,
        address: Any,
        handler: DatagramHandler,
        *,
        takes: Literal["datagram"],
        **options: Unpack[ServerOptions],
    ) -> None: ...

    @overload
    def __init__(
        self,
        address: Any,
        handler: BatchHandler,
        *,
        takes: Literal["batch"],
        **options: Unpack[ServerOptions],
    ) -> None: ...

    @overload
    def __init__(
        self,
        address: Any,
        handler: TimedHandler,
        *,
        takes: Literal["timed"],
        **options: Unpack[ServerOptions],
    ) -> None: ...

    def __init__(  # noqa: PLR0913 - the options of a server
        self,
        address: Any,
        handler: Handler,
        *,
        takes: Takes = "data",
        workers: int = 1,
        threads: int = 1,
        init: Callable[[], object] | None = None,
        exit: Callable[[], object] | None = None,
        lifespan: Lifespan | None = None,
        loop: Loop | None = None,
        max_concurrency: int = 1000,
        max_requests: int | None = None,
        max_age: float | None = None,
        steering: Steering = "hash",
        drain: float = 5.0,
        rcvbuf: int | None = None,
        pacing: int | None = None,
        gro: bool = True,
        spin: float = 0.0,
        coalesce: float = 0.0,
        health: tuple[str, int] | None = None,
        access_log: int = 0,
        groups: Sequence[Any] = (),
        guard: Guard | None = None,
        proxy: Sequence[Any] = (),
        proxy_flows: float | None = None,
        dtls: DtlsContext | None = None,
        sock: Any = None,
        fd: int | None = None,
    ) -> None:
        settings = Settings(
            address=address,
            sock=sock,
            fd=fd,
            handler=handler,
            takes=takes,
            workers=workers,
            threads=threads,
            init=init,
            exit=exit,
            lifespan=lifespan,
            loop=loop,
            max_concurrency=max_concurrency,
            max_requests=max_requests,
            max_age=max_age,
            steering=steering,
            drain=min(float(drain), LONGEST_DRAIN),
            health=health,
            access_log=access_log,
            dtls=dtls,
            socket=SocketOptions(
                rcvbuf=rcvbuf,
                pacing=pacing,
                gro=bool(gro) and not isinstance(steering, Key),
                spin=spin,
                coalesce=coalesce,
                groups=groups,
                guard=guard,
                proxy=proxy,
                proxy_flows=proxy_flows,
            ),
        )
        sink = _sink_of(handler)
        if sink is not None:  # it opens and closes itself in each worker
            takes, init, exit = sink._attach(takes, init, exit)  # noqa: SLF001 - our own class
        self._settings = replace(settings, takes=takes, init=init, exit=exit)
        self._life = Lifecycle(self._keep, settings.drain)
        self.ready: threading.Event = self._life.ready
        """A :class:`threading.Event` that is set while the server is running."""
        self._run: Run | None = None
        # Whether the handler runs in other processes, which SIGHUP can replace.
        self._is_forking = workers > 1

    def __repr__(self) -> str:
        state = self._life.state
        name = self._settings.address if self._run is None else self.address
        return f"<tomada.Server at {name} {'not started' if state == 'created' else state}>"

    @property
    def health_address(self) -> Any:
        """The address of ``health``, with the actual port, or ``None``."""
        http = self._running().http
        return None if http is None else http.address

    @property
    def status(self) -> str:
        """``"created"``, ``"starting"``, ``"running"``, ``"draining"`` or ``"stopped"``."""
        return self._life.state

    @property
    def guard(self) -> Guard | None:
        """The guard."""
        return self._settings.socket.guard

    @property
    def sink(self) -> Sink | None:
        """The sink that publishes the datagrams, if the handler is one."""
        return _sink_of(self._settings.handler)

    @property
    def address(self) -> Any:
        """The address that the server is bound to, with the actual port."""
        return self._running().listeners.address

    @property
    def state(self) -> Any:
        """The value that this worker's lifespan yielded: what ``with … as`` would assign.

        Handlers can read it, and so can the tasks and threads that they start.

        :raises RuntimeError: The server has no lifespan, this is not one of its workers, or the
            worker has not entered the lifespan or has already exited it. With ``threads``, also if
            the calling thread is not one of the server's.
        """
        return self._running().state()

    def start(self) -> None:
        """Bind the address and serve in the background; return when all workers are ready.

        This also sets :attr:`ready`, a :class:`threading.Event` that other threads can wait for.

        If a signal handler raises an exception during the start (such as
        :class:`KeyboardInterrupt`), the start is cancelled: the workers are killed, and the port is
        released.

        :raises OSError: The address cannot be bound: for example, it is in use (``EADDRINUSE``) or
            does not belong to this machine.
        :raises RuntimeError: The server was already started or stopped; or another thread or a
            signal handler called :meth:`stop` during the start.

        If ``init`` raises an exception, this raises it too. An exception from another process keeps
        its type only if that is a built-in type that can be created from a string; otherwise, this
        raises a :class:`RuntimeError` that names the type. A note contains the worker's traceback.
        """
        try:
            self._life.start()
        except OSError as error:
            if self._run is None and error.errno == errno.EAGAIN:  # cannot create a thread
                given = self._settings.sock
                place = self._settings.address if given is None else given.getsockname()
                advise(error, format_address(place), OF_OPENING)
            raise

    def stop(self) -> None:
        """Stop receiving, handle all queued datagrams, and shut the server down.

        New datagrams are refused at once (with an ICMP error), so each datagram is either handled
        or refused. A worker has ``drain`` seconds to handle the queued datagrams, plus one second
        in which the handler and ``exit`` must return and a worker process must exit. After that, a
        worker process is killed, whereas a thread is left running. The log says how many received
        datagrams were not handled, including those left in the socket's queue, unless the caller
        passed the socket.

        A second call just waits until the server has stopped. In a forked process that is not one
        of the server's workers, this does nothing.

        A signal handler may also call this. If the signal interrupted :meth:`start` in the same
        thread, or if the server's own handler calls :meth:`stop`, the call only requests the
        shutdown and returns at once; a :meth:`start` that has not returned yet then raises
        :class:`RuntimeError`. A call during :meth:`start` cancels the start without waiting for
        ``init``: a worker process is killed, whereas a thread is left running.

        If a signal handler raises an exception during the call, draining ends, the workers are
        killed, and the port is released.
        """
        run = self._run
        if run is not None and run.context.owner != os.getpid():
            run.context.ask_supervisor(signal.SIGTERM)
            return
        self._life.stop()

    def serve_forever(self) -> None:
        """Serve until :meth:`stop` is called or a signal arrives; start the server first if needed.

        In the main thread, SIGINT (Ctrl-C) and SIGTERM stop the server like :meth:`stop`, and this
        method returns. A second signal raises :class:`KeyboardInterrupt` at once. During a start,
        either signal cancels the start. SIGHUP replaces the workers one by one: each new worker
        takes over the socket of an old one, and the old worker handles the datagrams that it has
        already received. No datagram is lost, and if a new worker cannot start, the old one
        continues. In a server with a single process, SIGHUP has no effect. A new process is a copy
        of the program as it was when the server started, and runs ``init`` again. It does not
        import changed code (``tomada serve --app`` does).

        If a service manager started the program (``NOTIFY_SOCKET``), the server reports its status
        to the manager, and notifies the manager when the server is ready, reloading or stopping. If
        the manager runs a watchdog, the server also sends keep-alive messages
        (:manpage:`sd_notify(3)`).

        Before this call, even after :meth:`start`, Ctrl-C raises :class:`KeyboardInterrupt`; to
        cover all cases, write ``with contextlib.suppress(KeyboardInterrupt), server:``.

        The handler runs in another thread or in the worker processes, so signals are handled even
        while it blocks. An exception from another signal handler also stops the server.
        """
        serve_in_foreground(self, self._life, lambda: self._run)

    def replace_workers(self) -> None:
        """Replace each worker process with a new one, without losing datagrams, like SIGHUP.

        A replaced worker calls ``exit``, as it does when the server stops.

        This returns at once. In a server with a single process, it does nothing.
        """
        run = self._run
        if run is not None and run.context.owner != os.getpid():
            run.context.ask_supervisor(signal.SIGHUP)
        elif run is not None:
            run.workers.replace()

    def stats(self) -> ServerStats:
        """Return the counters since the start, summed over all workers, including dead ones."""
        context = self._running()
        return context.counters.stats(*context.listeners.drops())

    def sendto(self, data: Any, address: Any) -> None:
        """Send a datagram from the server's port, such as a late reply or a notification.

        Inside the handler, and in tasks on a worker's event loop, the datagram is sent together
        with the replies of the same batch or loop iteration, and errors are logged and counted like
        those of replies. Elsewhere, it is sent at once, and this raises :class:`OSError` if sending
        fails. If this worker has recently received a datagram from the peer, it sends from the
        local address that the peer used. (:meth:`start` forks the workers. If the handler uses the
        server, assign the server to a variable before the start: ``with Server(…) as server``
        assigns it only afterwards.)
        """
        cores = self._running().cores
        core = next((core for core in cores[1:] if core.is_delivering), cores[0])
        core.sendto(data, address)

    def dtls_session(self, address: Any) -> DtlsSession | None:
        """Return the DTLS session with a peer, or ``None`` if there is none in this process.

        Call it from the handler; with ``workers=1``, you can call it from anywhere. This is the
        peer's current session. A datagram may have arrived over an earlier session;
        :attr:`Datagram.session <tomada.Datagram.session>` is the one that it arrived over.
        """
        endpoints = self._running().endpoints
        found = (endpoint.session(address) for endpoint in endpoints)
        return next((session for session in found if session is not None), None)

    def dtls_stats(self) -> dict[str, int]:
        """Return the DTLS counters, summed over the sockets of this process.

        ``sessions`` and ``handshakes`` are the current numbers of sessions and of handshakes in
        progress. The others count events since the start: ``established`` and ``failed``
        handshakes; the failed ones again by cause: ``failed_certificate``, ``failed_timeout`` (also
        caused by wrong keys) and ``failed_protocol`` (for example, no cipher or version in common);
        sessions that have ``ended``, were ``replaced`` by a new one with the same peer, or were
        ``evicted`` because they were idle or there were too many; ``cookies_sent``; and ``invalid``
        datagrams, which were not DTLS or did not belong to a session. In a worker process, this
        returns the counters of that process.
        """
        stats = [endpoint.stats() for endpoint in self._running().endpoints]
        return {name: sum(each[name] for each in stats) for name in (stats[0] if stats else ())}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _running(self) -> Context:
        if self._run is None:
            raise RuntimeError("the server has not been started: call start() first")
        return self._run.context

    def _keep(self) -> None:
        """Open the sockets, serve, and close them.

        The lifecycle's dedicated thread, the keeper, runs this.
        """
        atexit.register(self.stop)
        try:
            with (
                contextlib.closing(open_listeners(self._settings)) as listeners,
                advised(listeners.address, OF_OPENING),
            ):
                context = Context(self, self._settings, listeners)
                self._run = Run(context, self._life, is_forking=self._is_forking)
                self._run.serve()
        finally:
            atexit.unregister(self.stop)


@overload
def serve(
    address: Any,
    handler: DataHandler | Sink,
    *,
    takes: Literal["data"] = "data",
    **options: Unpack[ServerOptions],
) -> None: ...


@overload
def serve(
    address: Any,
    handler: DatagramHandler,
    *,
    takes: Literal["datagram"],
    **options: Unpack[ServerOptions],
) -> None: ...


@overload
def serve(
    address: Any,
    handler: BatchHandler,
    *,
    takes: Literal["batch"],
    **options: Unpack[ServerOptions],
) -> None: ...


@overload
def serve(
    address: Any,
    handler: TimedHandler,
    *,
    takes: Literal["timed"],
    **options: Unpack[ServerOptions],
) -> None: ...


def serve(address: Any, handler: Handler, **options: Any) -> None:
    """Serve until SIGINT (Ctrl-C) or SIGTERM: ``Server(address, handler, …).serve_forever()``.

    When the signal arrives, this handles the queued datagrams and returns.
    """
    Server(address, handler, **options).serve_forever()
