"""``tomada serve --reload``: replaces the workers when a file changes."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from tomada._cli.common import CommandError

if TYPE_CHECKING:
    from tomada import Server

# How often the watcher yields, in milliseconds. The first time shows that watching works.
INTERVAL = 200

logger = logging.getLogger("tomada")


class Reloading:
    """Watches the Python files below a directory.

    :raises CommandError: watchfiles is not installed.
    """

    def __init__(self, directory: Path) -> None:
        try:
            import watchfiles
        except ImportError:
            raise CommandError("reload needs watchfiles: install tomada[reload]") from None
        self._directory = directory
        self._begun, self._ended = threading.Event(), threading.Event()
        self._error: Exception | None = None
        self._changes = watchfiles.watch(
            directory,
            watch_filter=watchfiles.PythonFilter(),
            stop_event=self._ended,
            rust_timeout=INTERVAL,
            yield_on_timeout=True,
            raise_interrupt=False,
        )
        self._thread: threading.Thread | None = None

    def start(self, server: Server) -> None:
        """Replace a server's workers at each change after this method has returned.

        :raises CommandError: The directory cannot be watched.
        """
        self._thread = threading.Thread(target=self._watch, args=(server,), daemon=True)
        self._thread.start()
        self._begun.wait()
        if self._error is not None:
            raise CommandError(f"reload cannot watch {self._directory}: {self._error}")

    def _watch(self, server: Server) -> None:
        try:
            self._replace(server)
        except Exception as error:
            if self._begun.is_set():
                raise
            self._error = error
            self._begun.set()

    def _replace(self, server: Server) -> None:
        for changes in self._changes:
            self._begun.set()
            if not changes:
                continue
            names = sorted({Path(path).name for _, path in changes})
            logger.info("%s changed: replacing the workers", ", ".join(names))
            server.replace_workers()

    def end(self) -> None:
        """Stop watching."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
