"""Servers: they call a handler with each datagram, and send its replies in batches."""

from __future__ import annotations

import atexit
import errno
import math
import os
import signal
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack, overload

from tomada import _core
from tomada._address import format_address
from tomada._advice import OF_OPENING, advise, advised
from tomada._server.app import check_callback, check_handler
from tomada._server.context import Context
from tomada._server.health import TEXT, Answer, Health
from tomada._server.lifecycle import Lifecycle, StoppedWhileStartingError
from tomada._server.lifespan import check_lifespan
from tomada._server.listeners import Listeners, adopt, listen, passed_descriptors
from tomada._server.loops import check_loop
from tomada._server.options import check_choices, check_limits, check_workers
from tomada._server.processes import Processes
from tomada._server.steering import Key, key
from tomada._server.systemd import Manager
from tomada._server.threads import Threads
from tomada._server.wakeup import Signals, Wakeup
from tomada._sinks.sink import attach
from tomada._socket_options import SocketOptions, check_dtls, check_shared

if TYPE_CHECKING:
    import threading

    from tomada._core import DtlsContext, DtlsSession, Guard
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

# The longest drain that can be limited, in seconds: all timers accept it. A longer one is
# unlimited.
LONGEST = 1e9


class Server:
    """Receives datagrams in batches, calls a handler, and sends its replies in batches.

    Each reply is sent from the address that the request was sent to, which may differ from the
    machine's default one. Datagrams are never truncated. If a handler raises an exception, or
    returns a wrong type or a reply that is too long, the error is logged under ``tomada`` and
    counted, and the server continues. The handler is not called with datagrams whose source is the
    server's own address: its reply would be the next request.

    :param address: ``(host, port)`` for IPv4 or IPv6, or a path or name of ``AF_UNIX``. The port 0
        means any free port. ``"::"`` also accepts IPv4: such peers have addresses like
        ``("::ffff:127.0.0.1", 1234, 0, 0)``. ``None`` uses the sockets passed by systemd
        (``LISTEN_FDS``), or ``sock`` or ``fd``.
    :param handler: Called with each datagram. It returns the reply: a bytes-like object (an empty
        one is an empty datagram), or ``None`` for no reply. In each process one thread at a time
        calls it, or ``threads`` of them. If it is a coroutine function (``async def``), each call
        is a task on the worker's event loop, started eagerly from Python 3.12 on, in a copy of the
        context (:mod:`contextvars`) in which the lifespan was entered. A
        :class:`tomada.sinks.Sink` publishes the datagrams.
    :param takes: The handler's arguments. ``"data"``: ``(data, address)``. ``"datagram"``: one
        :class:`tomada.Datagram`, with the kernel's metadata. ``"batch"``: a list of pairs ``(data,
        address)``; the handler returns an iterable with the reply (or ``None``) to each, or
        ``None``. ``"timed"``: a list of triples ``(data, address, timestamp_ns)``, whose times, in
        nanoseconds since 1970, are the kernel's (or ``None``).
    :param workers: The number of processes. With 1, a thread of this process calls the handler.
        More workers are forked by :meth:`start`, each with its own socket (``SO_REUSEPORT``), and
        supervised: a worker that dies is restarted with backoff, and its socket queues datagrams
        meanwhile. If a worker cannot start, the server ends with the worker's error: at once during
        :meth:`start`, later after five attempts. Forking copies this process, so start such a
        server before other threads.
    :param threads: The number of threads, for interpreters without a global lock.
    :param init: Called once in each worker before it receives datagrams: in each process of
        ``workers``, or in each thread of the server.
    :param exit: Called once in each worker in which ``init`` has returned, after the last datagram
        was handled: when the server stops, when the worker is replaced (SIGHUP), and when a
        handler raises :class:`SystemExit`; but not when the worker is killed. A worker process then
        exits like a Python program: it waits for threads, runs the :mod:`atexit` functions
        registered in the worker, and flushes files. All of this may take the rest of ``drain`` plus
        one second. Exceptions are logged.
    :param lifespan: A function that takes the server and returns a context manager or an
        asynchronous one, such as one decorated with :func:`contextlib.contextmanager` or
        :func:`contextlib.asynccontextmanager`. Each worker enters it after ``init``, before its
        first datagram, and leaves it once, after its last one and before ``exit``, whenever
        ``exit`` is called. Its value is :attr:`state`. An exception on entering is handled like one
        of ``init``; one on leaving is logged. A worker process that is to stop while it enters
        completes that first, within ``drain`` plus one second. A thread that is still entering is
        left running, and leaves the lifespan as soon as it has entered it.
    :param loop: The event loop of each worker: ``"tomada"`` (:class:`tomada.asyncio.EventLoop`, the
        default), ``"asyncio"``, ``"uvloop"``, or a function that makes one. A server has an event
        loop if its handler or its lifespan is async, or if this is given; a synchronous handler is
        then called by the loop.
    :param max_concurrency: How many calls of an async handler may be under way in each worker.
        While there are as many, the worker does not receive: datagrams wait in the kernel's buffer
        and, if that is full, are dropped and counted (``stats().kernel_drops``). The default of
        1,000 bounds the memory of the tasks to a few megabytes, and lets each call open a
        descriptor within the usual limit of 1,024.
    :param max_requests: Replace a worker after about this many datagrams: at least 80 % of them,
        at random, so that workers are not replaced together. The new worker starts before the old
        one drains, as on SIGHUP. Checked once per second. Needs several workers.
    :param max_age: Replace a worker after this many seconds, or at random 80 % of them or more.
    :param steering: Which worker receives a datagram. ``"hash"``: always the same for a peer.
        ``"cpu"``: that of the CPU that received it. ``"random"``: any. :func:`tomada.key`: always
        the same for an identifier in the payload.
    :param drain: The maximum time in seconds to handle queued datagrams when the server stops;
        ``math.inf`` for no limit. Calls of an async handler that are still under way are then
        cancelled, and counted (``stats().cancelled``).
    :param rcvbuf: The size of each receive buffer in bytes. If the kernel grants less (sysctl
        ``net.core.rmem_max``), the server logs it.
    :param gro: Whether the kernel may deliver coalesced datagrams (``UDP_GRO``).
    :param spin: How long to poll for the next datagram before sleeping, in seconds: shorter round
        trips, at the cost of a core. A server on an event loop does not spin.
    :param groups: Multicast groups to join, each an address, or the arguments of
        :meth:`tomada.socket.socket.join_group`. Workers then share one socket, because several
        sockets would each receive a copy.
    :param health: ``(host, port)`` to answer probes at, over HTTP: ``/live``, ``/ready`` (status
        503 before the start has finished, and from the first moment of :meth:`stop`, before a
        datagram is refused) and ``/metrics`` for Prometheus (``tomada[metrics]``). It answers
        anybody, so outsiders must not be able to reach it. ``/live`` has the status 503 if
        datagrams wait and none was received for 30 seconds.
    :param access_log: Log one in this number of datagrams of each worker, to the logger
        ``tomada.access``: peer, bytes, the handler's time, and its outcome. 0 logs none.
    :param guard: A :class:`tomada.Guard` for received datagrams and replies. Each worker enforces
        the limits on its own, based on what it has received itself; the guard's counters are sums
        over all workers.
    :param proxy: The networks of trusted proxies (load balancers), such as ``["10.0.0.0/8"]``. Each
        of their datagrams must begin with a PROXY protocol header (version 2), which says which
        client it comes from. The handler, the guard and the log see the client's address, and
        replies go back through the proxy. Datagrams of these networks without a valid header are
        refused, and so are headers from other addresses (``stats().proxy_malformed`` and
        ``proxy_untrusted``). Other datagrams are those of direct clients.
    :param proxy_flows: For proxies that put a header in front of only the first datagram of each
        flow (from one address and port of the proxy): how long a flow may be silent before the
        proxy ends it, in seconds. A flow's worker must not change: it needs
        ``steering="hash"``, and a replaced worker refuses the flows of its predecessor until they
        begin again.
    :param dtls: A :class:`tomada.dtls.Context` of ``PROTOCOL_DTLS_SERVER``. The handler then gets
        what peers with a session have sent, decrypted, and its replies are encrypted. A datagram to
        a peer without a session is an error. Each worker has the sessions of its own peers, so
        several workers need ``steering="hash"``. Not available with ``proxy``.
    :param sock: A bound socket to use instead of an address. The caller still owns it.
    :param fd: The descriptor of a bound socket. The server takes ownership of it.

    A server can be started and stopped once. All methods may be called from any thread, and from
    signal handlers.
    """

    @overload
    def __init__(
        self,
        address: Any,
        handler: DataHandler,
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

    @overload
    def __init__(
        self,
        address: Any,
        handler: Sink,
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
        gro: bool = True,
        spin: float = 0.0,
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
        check_handler(handler)
        check_callback(init, "init")
        check_callback(exit, "exit")
        check_lifespan(lifespan)
        check_loop(loop)
        takes, init, exit = attach(handler, takes, init, exit)
        check_choices(takes, steering)
        if math.isnan(drain) or drain < 0:
            raise ValueError(f"drain must be a number of seconds, not {drain}")
        check_workers(workers, threads)
        check_limits(max_concurrency, max_requests, max_age, workers)
        if dtls is not None:
            check_dtls(dtls, is_server=True)
            if workers > 1 and (steering != "hash" or groups):
                raise ValueError(
                    'with dtls, several workers need steering="hash" and no groups: a session '
                    "belongs to one worker"
                )
            if proxy:
                raise ValueError("proxy is not available with dtls: sessions are those of clients")
        check_shared(sock)
        if sum(given is not None for given in (address, sock, fd)) > 1:
            raise ValueError("give one of address, sock and fd")
        if access_log < 0:
            raise ValueError(f"access_log must be at least 0, not {access_log}")
        if health is not None and not isinstance(health, tuple):
            raise TypeError(f"health must be (host, port), not {health!r}")
        self._handler, self._takes, self._init, self._exit = handler, takes, init, exit
        self._lifespan, self._loop, self._max_concurrency = lifespan, loop, max_concurrency
        self._max_requests, self._max_age = max_requests, max_age
        self._workers, self._threads = workers, threads
        self._drain = min(float(drain), LONGEST)
        self._address, self._given, self._fd = address, sock, fd
        self._steering, self._dtls = steering, dtls
        self._health_address, self._access_log = health, access_log
        self._options = SocketOptions(
            rcvbuf=rcvbuf,
            gro=bool(gro) and not isinstance(steering, Key),
            spin=spin,
            groups=groups,
            guard=guard,
            proxy=proxy,
            proxy_flows=proxy_flows,
        )
        several = max(workers, threads) > 1
        if proxy_flows is not None and several and (steering != "hash" or groups):
            raise ValueError("proxy_flows needs steering='hash': a flow's worker must not change")
        self._life = Lifecycle(self._keep, self._drain)
        self.ready: threading.Event = self._life.ready
        """A :class:`threading.Event` that is set while the server is running."""
        self._context: Context | None = None
        self._backend: Threads | Processes | None = None
        self._health: Health | None = None
        # Whether the handler runs in other processes, which SIGHUP can replace.
        self._is_forking = workers > 1

    def __repr__(self) -> str:
        state = self._life.state
        name = self._address if self._context is None else self.address
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
        return self._options.guard

    @property
    def address(self) -> Any:
        """The address that the server is bound to, with the actual port."""
        return self._running().listeners.address

    @property
    def state(self) -> Any:
        """The value of this worker's lifespan: what its ``with … as`` would assign.

        Handlers, tasks and the threads that they start can read it.

        :raises RuntimeError: The server has no lifespan, or this is not one of its workers, or not
            in the time in which the lifespan is entered. With ``threads``, also in other threads
            than those of the server.
        """
        return self._running().state()

    def start(self) -> None:
        """Bind the address and serve in the background; return when all workers are ready.

        This also sets :attr:`ready`, a :class:`threading.Event` that other threads can wait for.

        If a signal handler raises an exception meanwhile (for example :class:`KeyboardInterrupt`),
        the start is cancelled: the workers are killed, and the port is free again.

        :raises OSError: The address is occupied (``EADDRINUSE``), not on this machine, …
        :raises RuntimeError: The server was already started or stopped; or another thread or a
            signal
            handler called :meth:`stop` during the start.

        An exception of ``init`` is raised here. If it comes from another process, it has the same
        type only if that is a built-in type which can be created from a text; otherwise it is a
        :class:`RuntimeError` that names the type. A note contains the worker's traceback.
        """
        try:
            self._life.start()
        except OSError as error:
            if self._context is None and error.errno == errno.EAGAIN:  # cannot create a thread
                place = self._address if self._given is None else self._given.getsockname()
                advise(error, format_address(place), OF_OPENING)
            raise

    def stop(self) -> None:
        """Stop receiving, handle all queued datagrams, and end the server.

        New datagrams are refused at once (by ICMP), so each datagram is either handled or refused.
        A worker has ``drain`` seconds for that, plus one second in which the handler and ``exit``
        must return and a worker process must exit. Then a worker process is killed, and a thread is
        left running. The log says how many received datagrams were not handled; unless the socket
        was given to the server, they include those that were left in its queue.

        Stopping again only waits for the end. In a forked process that is not one of the server's
        workers, this does nothing.

        A signal handler may also call it. If that has interrupted :meth:`start` in the same thread,
        or in a handler of the server's datagrams, this requests the end and returns at once;
        :meth:`start` then raises :class:`RuntimeError`. It cancels a start without waiting for
        ``init``: a process is killed, and a thread is left running.

        If a signal handler raises an exception meanwhile, draining ends, the workers are killed,
        and the port is free.
        """
        context = self._context
        if context is not None and context.owner != os.getpid():
            context.ask_supervisor(signal.SIGTERM)
            return
        self._life.stop()

    def serve_forever(self) -> None:
        """Serve until :meth:`stop` is called or a signal arrives; start the server first if needed.

        In the main thread, SIGINT (Ctrl-C) and SIGTERM stop the server like :meth:`stop`, and this
        returns. A second one raises :class:`KeyboardInterrupt` at once. During a start, they cancel
        it. SIGHUP replaces the workers one by one: a new worker takes over the socket of an old
        one, which finishes the datagrams it has received. No datagram is lost, and if a new worker
        cannot start, the old one continues. In a server of one process, SIGHUP changes nothing. A
        new process is a copy of the program at the time of its start, and runs ``init`` again. It
        does not import changed code (``tomada serve --app`` does).

        If a service manager has started the program (``NOTIFY_SOCKET``), it is told when the server
        is ready, is reloading or is stopping, its status, and, if it asks for it, that the server
        lives (:manpage:`sd_notify(3)`).

        Another thread or the workers call the handler, so signals are handled even while the
        handler blocks. An exception of another signal handler also ends the server.
        """
        requests: list[int] = []

        def ask(number: int, _frame: object) -> None:
            if requests:
                raise KeyboardInterrupt
            requests.append(number)
            self._life.request_stop()

        def replace(*_: object) -> None:
            manager.reloading()
            self.replace_workers()

        manager = Manager()
        handlers: dict[int, Callable[..., Any]] = {signal.SIGINT: ask, signal.SIGTERM: ask}
        # With one worker there is nothing to replace, and it must not end the program either.
        handlers[signal.SIGHUP] = replace
        wakeup = Wakeup()
        signals = Signals(handlers, wakeup)
        self._life.wakeups.append(wakeup)
        try:
            signals.install()
            self._serve(wakeup, manager)
            signals.restore()
        except BaseException as error:
            signals.restore()
            if isinstance(error, Exception):
                self.stop()
            else:
                self._life.abort()
            raise
        finally:
            self._life.wakeups.remove(wakeup)
            wakeup.close()
            manager.close()

    def _serve(self, wakeup: Wakeup, manager: Manager) -> None:
        life = self._life
        try:
            if life.state == "created" or life.is_elsewhere:
                self.start()  # a subclass may override it
        except StoppedWhileStartingError:
            return
        except RuntimeError:
            if self._context is None and life.state == "stopped" and life.error is None:
                return  # another thread has stopped it before it started
            raise
        if self._health is not None and life.state == "running":
            manager.ready(self)
            while life.state == "running":
                wakeup.wait(manager.tick(self, self._health, life.replacements))
        manager.stopping()
        self.stop()
        if life.error is not None:
            raise life.error

    def replace_workers(self) -> None:
        """Replace each worker process by a new one, without losing datagrams, like SIGHUP.

        A replaced worker exits as when the server stops: it calls ``exit``.

        This returns at once. It does nothing in a server with a single process.
        """
        if self._context is not None and self._context.owner != os.getpid():
            self._context.ask_supervisor(signal.SIGHUP)
        elif self._backend is not None:
            self._backend.replace()

    def stats(self) -> _core.ServerStats:
        """Return the sums of all workers' counters since the start, including dead workers."""
        context = self._running()
        return context.counters.stats(*context.listeners.drops())

    def sendto(self, data: Any, address: Any) -> None:
        """Send a datagram from the server's port, for example a late reply or a notification.

        In the handler, and in all tasks on a worker's event loop, it is sent together with the
        replies of the batch or of the loop's turn, and errors are logged and counted like theirs.
        Elsewhere it is sent at once, and raises :class:`OSError` if it fails.
        To a peer from which this worker has recently received, it is sent from the address that the
        peer used. (A handler that uses its server must be able to find it in a worker, which is
        forked by :meth:`start`: assign it to a name before, not by ``with Server(…) as server``.)
        """
        cores = self._running().cores
        core = next((core for core in cores[1:] if core.is_delivering), cores[0])
        core.sendto(data, address)

    def dtls_session(self, address: Any) -> DtlsSession | None:
        """Return the DTLS session with a peer, or ``None`` if there is none in this process.

        Call it in the handler, or in a server of one worker.
        """
        endpoints = self._running().endpoints
        found = (endpoint.session(address) for endpoint in endpoints)
        return next((session for session in found if session is not None), None)

    def dtls_stats(self) -> dict[str, int]:
        """Return counters of DTLS: the sums over the sockets of this process.

        ``sessions`` and ``handshakes`` are the numbers of sessions that are complete and under way.
        The others count since the start: ``established`` and ``failed`` handshakes; sessions that
        have ``ended``, were ``replaced`` by a new one with the same peer, or were ``evicted``,
        because they were idle or too many; ``cookies_sent``; and ``invalid`` datagrams, which were
        not DTLS or belonged to no session. In a worker process, they are its own.
        """
        stats = [endpoint.stats() for endpoint in self._running().endpoints]
        return {name: sum(each[name] for each in stats) for name in (stats[0] if stats else ())}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _running(self) -> Context:
        if self._context is None:
            raise RuntimeError("the server was not started")
        return self._context

    def _keep(self) -> None:
        """Open the sockets, serve, and close them: the work of the lifecycle's keeper."""
        workers = max(self._workers, self._threads)
        atexit.register(self.stop)
        try:
            self._open(workers)
        finally:
            atexit.unregister(self.stop)

    def _open(self, workers: int) -> None:
        listeners = self._listen(workers)
        try:
            if workers > 1 and self._steering != "hash":
                listeners.check_steering()
            if self._options.proxy_flows is not None and len(listeners.sockets) < self._workers:
                raise ValueError("proxy_flows needs a socket for each worker: they share one")
            with advised(listeners.address, OF_OPENING):
                self._run(listeners, workers)
        finally:
            listeners.close()

    def _run(self, listeners: Listeners, workers: int) -> None:
        # One more block of counters, for datagrams sent from this process.
        counters = _core.ServerCounters(workers + 1)
        context = Context(
            server=self,
            listeners=listeners,
            handler=self._handler,
            takes=self._takes,
            workers=workers,
            init=self._init,
            exit=self._exit,
            lifespan=self._lifespan,
            drain=self._drain,
            loop=self._loop,
            max_concurrency=self._max_concurrency,
            max_requests=self._max_requests,
            max_age=self._max_age,
            counters=counters,
            dtls=self._dtls,
        )
        context.access_log = self._access_log
        self._health = Health(context, self._life)
        if self._health_address is not None:
            # It imports modules that other servers do not need.
            from tomada._server.health_http import HealthServer  # noqa: PLC0415

            context.http = HealthServer(self._health_address, self._routes(self._health))
        try:
            self._launch(context, workers)
        finally:
            if context.http is not None:
                context.http.close()

    def _launch(self, context: Context, workers: int) -> None:
        if self._is_forking:
            context.add_sender(workers)
            backend: Processes | Threads = Processes(context, self._life)
        else:
            for worker in range(workers):
                context.add_core(worker)
            backend = Threads(context, self._life)
        self._context, self._backend = context, backend
        try:
            self._life.launch_by_starter(backend.launch)
            if context.http is not None:
                context.http.start()  # after the fork
            backend.run()
        finally:
            backend.close()

    def _routes(self, health: Health) -> dict[str, Callable[[], Answer]]:
        return {"/live": health.live, "/ready": health.ready, "/metrics": self._metrics}

    def _metrics(self) -> Answer:
        try:
            from tomada._server.collector import exposition  # noqa: PLC0415 - of an extra
        except ImportError:
            return 501, TEXT, "install tomada[metrics]\n"
        return 200, "text/plain; version=0.0.4; charset=utf-8", exposition(self)

    def _listen(self, workers: int) -> Listeners:
        if self._address is not None:
            with advised(self._address, OF_OPENING):
                return listen(self._address, workers, self._options, steering=self._steering)
        if self._given is not None:
            duplicate = os.dup(self._given.fileno())
            try:
                return adopt([duplicate], self._options)
            except BaseException:
                os.close(duplicate)
                raise
        descriptors = [self._fd] if self._fd is not None else passed_descriptors()
        if not descriptors:
            raise ValueError(
                "no address to serve: give one, or sock or fd, or start the program by systemd's "
                "socket activation (LISTEN_FDS)"
            )
        if len(descriptors) > workers:
            raise ValueError(
                f"systemd has passed {len(descriptors)} sockets, each of which needs a worker: "
                f"give workers={len(descriptors)}"
            )
        return adopt(descriptors, self._options)


@overload
def serve(
    address: Any,
    handler: DataHandler,
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


@overload
def serve(
    address: Any,
    handler: Sink,
    **options: Unpack[ServerOptions],
) -> None: ...


def serve(address: Any, handler: Handler, **options: Any) -> None:
    """Serve until SIGINT (Ctrl-C) or SIGTERM: ``Server(address, handler, …).serve_forever()``.

    It then handles the queued datagrams, and returns.
    """
    Server(address, handler, **options).serve_forever()
