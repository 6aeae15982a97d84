"""Servers: a handler called with each datagram, its answers sent in batches."""

from __future__ import annotations

import atexit
import errno
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from tomada import _core
from tomada._address import format_address
from tomada._advice import OF_OPENING, advise, advised
from tomada._server.app import check_not_async
from tomada._server.context import Context
from tomada._server.lifecycle import Lifecycle, StoppedWhileStartingError
from tomada._server.listeners import Listeners, adopt, listen, passed_descriptors
from tomada._server.processes import Processes
from tomada._server.threads import Threads
from tomada._server.wakeup import Signals, Wakeup

if TYPE_CHECKING:
    import threading

    from tomada._core import Guard

__all__ = ["Server", "serve"]

Handler: TypeAlias = Callable[..., Any]
Takes: TypeAlias = Literal["data", "datagram", "batch"]
Steering: TypeAlias = Literal["hash", "cpu", "random"]

# Draining that may take longer than this many seconds may take for ever. Each timer takes it.
LONGEST = 1e9


class Server:
    """A server: it receives datagrams in batches, calls a handler, and sends the answers together.

    Each answer leaves from the address that was asked, which on a machine of several is not the one
    that the routes prefer. Datagrams are never truncated. A handler that raises an exception,
    returns what is no datagram, or one that is too long, is logged under ``tomada`` and counted,
    and stops nothing.

    :param address: ``(host, port)`` of IPv4 or IPv6, or a path or name of ``AF_UNIX``. The port 0
        is any free one. ``"::"`` answers IPv4 as well: such peers have addresses like
        ``("::ffff:127.0.0.1", 1234, 0, 0)``. ``None`` takes the sockets that systemd has passed
        (``LISTEN_FDS``), or those of ``sock`` or ``fd``.
    :param handler: Called with each datagram. What it returns is the reply: a bytes-like object, of
        which an empty one is an empty datagram, or ``None`` for no reply. It is called by one
        thread at a time in each process, or by ``threads`` of them.
    :param takes: What the handler is called with: ``"data"``: ``(data, address)``; ``"datagram"``:
        one :class:`tomada.Datagram`, with what the kernel knows about it; ``"batch"``: a list of
        pairs ``(data, address)``, to return an iterable with the reply (or ``None``) to each, or
        ``None``.
    :param workers: The number of processes. With 1 the handler is called in this process, by a
        thread of the server's. More are forked by :meth:`start`, each with its own socket
        (``SO_REUSEPORT``) and supervised: one that dies is started again with backoff, and its
        socket's queue waits for it meanwhile. A worker that cannot start ends the server with its
        error, at the start at once, later after five attempts. Forking copies this process: start
        such a server before other threads.
    :param threads: The number of threads, for interpreters without a global lock.
    :param init: Called once in each worker, before it takes datagrams: in each process of
        ``workers``, or in each thread of the server's.
    :param exit: Called once in each worker where ``init`` has returned, after the last datagram is
        answered: when the server stops, when the process is replaced (SIGHUP), and when a handler
        ends it with :class:`SystemExit`; not when it is killed. In a worker process, what Python
        does at a program's end follows: threads are waited for, functions that were registered
        with :mod:`atexit` in the worker run, and files that have something buffered write it. All
        of this has what is left of ``drain``, and one second more. An exception is logged.
    :param steering: Which worker gets a datagram: ``"hash"``: each peer has its own; ``"cpu"``:
        that of the CPU that received it; ``"random"``: any.
    :param drain: How many seconds stopping may take to answer what is queued; ``math.inf`` for as
        long as it takes.
    :param rcvbuf: The size of each receive buffer, in bytes. Where the kernel gives less (sysctl
        ``net.core.rmem_max``), a line of the log says so.
    :param gro: Whether the kernel may hand over several datagrams at once (``UDP_GRO``).
    :param spin: How many seconds to stay awake for the next datagram before sleeping: shorter
        round trips, at the cost of a core.
    :param groups: Multicast groups to join, each an address, or the arguments of
        :meth:`tomada.socket.socket.join_group`. Workers then share one socket, since several would
        each get a copy.
    :param guard: A :class:`tomada.Guard` for what arrives and leaves. Each worker limits on its
        own, by what it has received itself; the guard's counters are the sums over all workers.
    :param sock: A bound socket to use instead of an address. It stays the caller's, to close.
    :param fd: The descriptor of one, which becomes the server's.

    A server can be used once: started, then stopped. All methods may be called from any thread, and
    from signal handlers.
    """

    def __init__(  # noqa: PLR0913 - what can be said about a server
        self,
        address: Any,
        handler: Handler,
        *,
        takes: Takes = "data",
        workers: int = 1,
        threads: int = 1,
        init: Callable[[], object] | None = None,
        exit: Callable[[], object] | None = None,
        steering: Steering = "hash",
        drain: float = 5.0,
        rcvbuf: int | None = None,
        gro: bool = True,
        spin: float = 0.0,
        groups: Sequence[Any] = (),
        guard: Guard | None = None,
        sock: Any = None,
        fd: int | None = None,
    ) -> None:
        if not callable(handler):
            raise TypeError(f"the handler must be callable, not {type(handler).__name__}")
        for name, function in (("the handler", handler), ("init", init), ("exit", exit)):
            check_not_async(function, name)
        if takes not in ("data", "datagram", "batch"):
            raise ValueError(f"takes must be 'data', 'datagram' or 'batch', not {takes!r}")
        if steering not in ("hash", "cpu", "random"):
            raise ValueError(f"steering must be 'hash', 'cpu' or 'random', not {steering!r}")
        if workers < 1 or threads < 1:
            raise ValueError(f"workers and threads start at 1, not {min(workers, threads)}")
        if math.isnan(drain) or drain < 0:
            raise ValueError(f"drain must be a number of seconds, not {drain}")
        if threads > 1:
            _check_threads(workers)
        if sum(given is not None for given in (address, sock, fd)) > 1:
            raise ValueError("give one of address, sock and fd")
        self._handler, self._takes, self._init, self._exit = handler, takes, init, exit
        self._workers, self._threads = workers, threads
        self._drain = min(float(drain), LONGEST)
        self._address, self._given, self._fd = address, sock, fd
        self._steering = steering
        self._options: dict[str, Any] = {
            "rcvbuf": rcvbuf,
            "gro": gro,
            "spin": spin,
            "groups": groups,
            "guard": guard,
        }
        self._life = Lifecycle(self._keep)
        self.ready: threading.Event = self._life.ready
        """Set while the server is running: a :class:`threading.Event` to wait for."""
        self._context: Context | None = None
        self._backend: Threads | Processes | None = None

    def __repr__(self) -> str:
        state = self._life.state
        name = self._address if self._context is None else self.address
        return f"<tomada.Server at {name} {'not started' if state == 'created' else state}>"

    @property
    def address(self) -> Any:
        """The address that the server is bound to, with the real port."""
        return self._running().listeners.address

    def start(self) -> None:
        """Bind the address, and serve in the background; return when all workers are ready.

        :attr:`ready`, a :class:`threading.Event`, is set then, for other threads to wait for.

        An exception that a signal handler raises meanwhile (:class:`KeyboardInterrupt`, for one)
        ends the start: the workers are killed, and the port is free again.

        :raises OSError: The address is taken (``EADDRINUSE``), not of this machine, …
        :raises RuntimeError: The server was started before, or stopped; or :meth:`stop` was called
            while it started, by another thread or by a signal handler.

        What ``init`` raises in a worker is raised here: from a process as an exception of the same
        type where that is one of Python's own which a text can make, and otherwise as a
        :class:`RuntimeError` that names the type. A note has the worker's traceback.
        """
        try:
            self._life.start()
        except OSError as error:
            if self._context is None and error.errno == errno.EAGAIN:  # no thread is left
                place = self._address if self._given is None else self._given.getsockname()
                advise(error, format_address(place), OF_OPENING)
            raise

    def stop(self) -> None:
        """Take no more datagrams, answer those that the kernel has queued, and end.

        New datagrams are refused from the first moment (by ICMP), so that each is either answered
        or refused. A worker has ``drain`` seconds for the answers. One second more is for a handler
        that has not returned by then, for ``exit``, and for the rest of a worker process's end.
        After that, a worker process is killed, and a thread is left behind. Stopping again only
        waits for the end. In a process that was forked after the start, other than the server's
        workers, this does nothing.

        A signal handler may call it, too. Where it has interrupted :meth:`start` in the same
        thread, and in a handler of the server's datagrams, it asks for the end and returns at once;
        :meth:`start` then raises :class:`RuntimeError`. A start is abandoned: ``init`` is not
        waited for, but killed in a process, and left behind in a thread.

        An exception that a signal handler raises meanwhile ends the draining: workers are killed,
        and the port is free.
        """
        context = self._context
        if context is not None and context.owner != os.getpid():
            context.ask_supervisor(signal.SIGTERM)
            return
        self._life.stop()

    def serve_forever(self) -> None:
        """Serve until :meth:`stop` is called, or a signal asks for it; start first if need be.

        In the main thread, SIGINT (Ctrl-C) and SIGTERM stop the server, as :meth:`stop` does, and
        this returns; a second one raises :class:`KeyboardInterrupt` at once. A start that is under
        way is abandoned. SIGHUP replaces the workers, where there are several, one by one: a new
        one takes over the socket of an old one, which finishes what it has received; nothing is
        lost, and one that cannot start leaves the old one in its place. The new process is a copy
        of the program as it was started, ``init`` runs in it anew; it does not import changed code
        (``tomada serve --app`` does).

        The handler is called by another thread, or by workers, so that a signal is heeded even
        while it blocks. An exception of another signal handler ends the server, too.
        """
        asked: list[int] = []

        def ask(number: int, _frame: object) -> None:
            if asked:
                raise KeyboardInterrupt
            asked.append(number)
            self._life.request_stop()

        handlers: dict[int, Callable[..., Any]] = {signal.SIGINT: ask, signal.SIGTERM: ask}
        if self._workers > 1:
            handlers[signal.SIGHUP] = lambda *_: self.replace_workers()
        wakeup = Wakeup()
        signals = Signals(handlers, wakeup)
        self._life.wakeups.append(wakeup)
        try:
            signals.install()
            self._serve(wakeup)
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

    def _serve(self, wakeup: Wakeup) -> None:
        life = self._life
        try:
            if life.state == "created" or life.is_elsewhere:
                self.start()  # a subclass may have more to do
        except StoppedWhileStartingError:
            return
        except RuntimeError:
            if self._context is None and life.state == "stopped" and life.error is None:
                return  # by another thread, before it came to that
            raise
        while life.state in ("starting", "running"):
            wakeup.wait()
        self.stop()
        if life.error is not None:
            raise life.error

    def replace_workers(self) -> None:
        """Replace each worker process by a new one, with nothing lost, as SIGHUP does.

        A worker that is replaced ends as at the server's end: it calls ``exit``.

        It returns at once. In a server of one process there is nothing to replace.
        """
        if self._context is not None and self._context.owner != os.getpid():
            self._context.ask_supervisor(signal.SIGHUP)
        elif self._backend is not None:
            self._backend.replace()

    def stats(self) -> _core.ServerStats:
        """Return what all workers have counted since the start, those that have died included."""
        context = self._running()
        return context.counters.stats(*context.listeners.drops())

    def sendto(self, data: Any, address: Any) -> None:
        """Send a datagram from the server's port: a reply that comes later, or what nobody asked.

        From the handler, it leaves with the replies of the batch, and what goes wrong is logged and
        counted as with those; from elsewhere, at once, with an :class:`OSError` where it fails. A
        peer that this worker has heard lately is answered from the address that it asked. (A
        handler that uses its server must be able to find it in a worker, which is forked by
        :meth:`start`: give it a name before, not by ``with Server(…) as server``.)
        """
        cores = self._running().cores
        core = next((core for core in cores[1:] if core.is_delivering), cores[0])
        core.sendto(data, address)

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
            with advised(listeners.address, OF_OPENING):
                self._run(listeners, workers)
        finally:
            listeners.close()

    def _run(self, listeners: Listeners, workers: int) -> None:
        # One block of counters more, for what is sent from here.
        counters = _core.ServerCounters(workers + 1)
        context = Context(
            listeners,
            self._handler,
            self._takes,
            workers,
            self._init,
            self._exit,
            self._drain,
            counters,
        )
        if self._workers > 1:
            context.add_sender(workers)
            backend: Processes | Threads = Processes(context, self._life)
        else:
            for worker in range(workers):
                context.add_core(worker)
            backend = Threads(context, self._life)
        self._context, self._backend = context, backend
        try:
            self._life.launch_by_starter(backend.launch)
            backend.run()
        finally:
            backend.close()

    def _listen(self, workers: int) -> Listeners:
        if self._address is not None:
            with advised(self._address, OF_OPENING):
                return listen(self._address, workers, steering=self._steering, **self._options)
        if self._given is not None:
            duplicate = os.dup(self._given.fileno())
            try:
                return adopt([duplicate], **self._options)
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
        return adopt(descriptors, **self._options)


def serve(address: Any, handler: Handler, **options: Any) -> None:
    """Serve until SIGINT (Ctrl-C) or SIGTERM: ``Server(address, handler, …).serve_forever()``.

    What the kernel has queued by then is answered, and the call returns.
    """
    Server(address, handler, **options).serve_forever()


def _check_threads(workers: int) -> None:
    if workers > 1:
        raise ValueError("give either workers or threads")
    is_locked: Callable[[], bool] = getattr(sys, "_is_gil_enabled", lambda: True)
    if is_locked():
        raise ValueError(
            "threads need an interpreter without the global lock (python3.13t or later); here it "
            "would let one of them run at a time: use workers"
        )
