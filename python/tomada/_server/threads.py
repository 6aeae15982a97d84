"""A server's threads in this process."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from tomada._advice import start_thread
from tomada._server.context import GRACE, Context
from tomada._server.serving import serve_datagrams

if TYPE_CHECKING:
    from tomada._server.lifecycle import Lifecycle

# How long threads may take to end if the server is aborted, or stopped while starting, in seconds.
BRIEF = 0.2


class Threads:
    """One thread for each core of a server. Only the keeper calls its methods."""

    def __init__(self, context: Context, life: Lifecycle) -> None:
        self._context, self._life = context, life
        workers = range(context.settings.cores)
        for worker in workers:
            context.add_core(worker)
        self._threads = [
            threading.Thread(
                target=self._run, args=(worker,), name=f"tomada.Server-{worker}", daemon=True
            )
            for worker in workers
        ]
        self._is_ready = [False for _ in workers]
        self._has_drained = [False for _ in workers]
        self._is_over = [False for _ in workers]
        self._error: BaseException | None = None
        self._exit: BaseException | None = None  # raised by a handler to end the program
        self._cause = context.too_slow

    def launch(self) -> None:
        """Do nothing, because the keeper itself can start threads."""

    def run(self) -> None:
        """Start the threads; return when they have ended, or raise the exception of one of them."""
        started = 0
        try:
            for thread in self._threads:
                start_thread(thread)
                started += 1
            while not (self._life.is_stopping or self._error or any(self._is_over)):
                if all(self._is_ready):
                    self._life.live_workers = frozenset(range(started))
                    self._life.set_ready()
                self._life.wait()
        finally:
            self._stop(self._threads[:started])
            self._life.live_workers = frozenset()
        error = self._error or self._exit
        if error is not None:
            raise error

    def _run(self, worker: int) -> None:
        context, life = self._context, self._life
        life.own_threads.add(threading.get_ident())
        try:
            core = context.cores[worker]
            core.prepare()
            if context.settings.init is not None:
                context.settings.init()
            context.threads[threading.get_ident()] = worker

            def begin() -> bool:
                self._is_ready[worker] = True
                life.notify()
                # If the server stopped while `init` ran, the sockets may be closed.
                return life.ready.is_set() or not life.is_stopping

            def end(unanswered: int, cause: str | None) -> None:
                self._has_drained[worker] = True
                context.log_unanswered(unanswered, cause or self._cause, life.log)

            try:
                serve_datagrams(context, core, begin, end, on_exit=self._on_exit, log=life.log)
            finally:
                context.run_exit(life.log)
        except BaseException as error:
            self._error = error
            # A program that does not wait for the server sees only the log.
            if self._is_ready[worker] and not life.is_stopping:
                life.log.exception("a worker has failed: the server stops")
        finally:
            self._is_over[worker] = True
            life.own_threads.discard(threading.get_ident())
            life.notify()

    def _on_exit(self, error: BaseException) -> None:
        """Stop the server in order: the threads handle the datagrams that have arrived."""
        if self._exit is None:
            self._exit = error
            self._life.log.error("the handler has raised %r: the server stops", error)
        self._life.request_stop()

    def close(self) -> None:
        """Do nothing: the sockets are closed by the code that opened them."""

    def replace(self) -> None:
        """Only count a replacement: new threads would not load new code."""
        self._life.count_replacement()

    def _stop(self, threads: list[threading.Thread]) -> None:
        """Answer queued datagrams, and end the threads.

        A handler that does not return cannot be interrupted, so its thread is left running.
        """
        context, life = self._context, self._life
        context.listeners.refuse()
        context.listeners.disable_gro()
        in_order = all(self._is_ready) and self._error is None
        patience = context.settings.drain + GRACE if in_order else GRACE if self._error else BRIEF
        for core in context.cores:
            drain = context.settings.drain if in_order and not life.is_aborted else 0.0
            core.stop(drain, is_last=context.listeners.is_own)
        if not in_order:  # nothing is drained
            self._cause = "one of its threads failed" if self._error else "it had not started yet"
        begun = asked = time.monotonic()
        was_aborted = False
        while not all(self._is_over[: len(threads)]):
            if life.is_aborted and not was_aborted:
                was_aborted = True
                self._cause = "an exception has ended the draining"
                begun, patience = time.monotonic(), BRIEF
                for core in context.cores:
                    core.stop(0.0)
            left = begun + patience - time.monotonic()
            if left <= 0:
                break
            life.wait(left)
        self._leave(threads, asked)

    def _leave(self, threads: list[threading.Thread], asked: float) -> None:
        """Join the threads that have ended, and log the others."""
        end = time.monotonic() + GRACE
        for worker, thread in enumerate(threads):
            if self._is_over[worker]:
                thread.join(max(0.0, end - time.monotonic()))
            else:
                self._life.log.error(
                    "%s has not returned %.1f seconds after the server began to stop; its thread "
                    "is left running",
                    self._called(worker),
                    time.monotonic() - asked,
                )

    def _called(self, worker: int) -> str:
        """Return the user's function that a thread called last, for the log."""
        if self._has_drained[worker]:
            return "the end of a worker (lifespan, exit, or a thread of its event loop)"
        if self._is_ready[worker]:
            return "the handler"
        return "init" if self._context.settings.lifespan is None else "init or lifespan"
