"""``tomada serve``: runs a server with your handler, or one for testing clients."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import re
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tomada._address import format_address
from tomada._cli.common import (
    FAILURE,
    HOST,
    PORT,
    SUCCESS,
    CommandError,
    UsageError,
    note,
    put_line,
    shown,
)
from tomada._cli.dtls import server_context
from tomada._cli.logs import ERASE, configure
from tomada._cli.options import OPTIONS, add_options
from tomada._cli.status import StatusLine, counters, summary
from tomada._config import ConfigError, Settings, misspelled, resolve

if TYPE_CHECKING:
    from tomada import Guard, Server
    from tomada.sinks import Sink

EXAMPLES = """
examples:
  tomada serve                               an echo server on 127.0.0.1:1234
  tomada serve 0.0.0.0:1234 --app service:handle --workers 4
  tomada serve :1234 --discard               receive everything, send no reply
  tomada serve --config service.toml --health 127.0.0.1:9000

A handler is a function of the datagram's bytes and the sender's address; it returns the
reply, or None for no reply. The module may be in the current directory. With several workers,
each worker imports the module itself.

Each option can also be an environment variable (TOMADA_MAX_SIZE=1200 for --max-size 1200, and
TOMADA_ADDRESS) or a key in the file (max-size = 1200). The command line takes precedence over the
environment, and the environment over the file. In a variable, separate several values with commas.

signals:
  SIGINT, SIGTERM  handle all queued datagrams, then exit. A second one meanwhile discards the
                   datagrams that are still queued, and exits at once
  SIGHUP           with several workers, replace them one by one, without losing a datagram. The
                   new workers import the current code of --app. If that fails, the log says why,
                   and the old workers continue. The configuration file is not read again

exit status:
  0    stopped by a signal
  1    the server or its workers could not start
  2    an option is wrong
  130  a second signal ended it before it had handled all queued datagrams
"""

logger = logging.getLogger("tomada")


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "serve",
        help="run an echo server, or your own handler",
        description="Serve an address. By default, send every datagram back.",
        usage="tomada serve [HOST:PORT] [OPTION …]",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    given = vars(arguments)
    try:
        path = given["config"] or os.environ.get("TOMADA_CONFIG") or None
        settings = resolve(OPTIONS, given, os.environ, path)
        _check(settings)
    except ConfigError as error:
        raise UsageError(str(error)) from None
    return Service(settings).run()


class Service:
    """The server, and the parts that run beside it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._style = settings.get("log-format", "console")
        is_terminal = self._style == "console" and sys.stderr.isatty()
        self._status = StatusLine() if is_terminal and not settings.get("quiet") else None
        self._started = time.monotonic()

    def run(self) -> int:
        settings = self._settings
        level = settings.get("log-level", "info")
        configure(self._style, level, erases=self._status is not None)
        for wrong, right in misspelled(OPTIONS, os.environ).items():
            logger.warning(
                "the environment variable %s is not an option: did you mean %s?", wrong, right
            )
        with contextlib.ExitStack() as stack:
            stack.enter_context(_shared_metrics(settings))
            try:
                server = self._make(stack)
                server.serve_forever()
            except Exception as error:  # noqa: BLE001 - may come from the user's code
                self._end_status()
                return self._fail(error)
            finally:
                self._end_status()
        return self._conclude(server)

    def _end_status(self) -> None:
        if self._status is not None:
            self._status.end()

    def _fail(self, error: Exception) -> int:
        """Report why the server could not start or continue; return the exit status."""
        explained, code = _explained(error)
        if self._style == "console":
            if code:
                note(code)
            raise explained from None
        logger.error("%s", "\n".join(filter(None, (str(explained), code))))
        return explained.status if isinstance(explained, CommandError) else FAILURE

    def _make(self, stack: contextlib.ExitStack) -> Server:
        from tomada import Server

        settings, announce = self._settings, self._announce
        is_forking = _is_forking(settings)
        companions = [*_companions(settings)]
        for companion in companions:
            stack.callback(companion.end)

        class Announced(Server):
            """Prints that it has started, once signals are handled and the workers are forked."""

            def start(self) -> None:
                super().start()
                for companion in companions:
                    companion.start(self)
                announce(self)

            def replace_workers(self) -> None:
                super().replace_workers()
                if not is_forking:  # a signal handler may have called this
                    self._life.log.warning("cannot reload: this needs --workers 2 or more")

        options = settings.of(OPTIONS, "server")
        for name in ("init", "exit", "lifespan"):
            if name in options:
                options[name] = self._function(name, is_forking=is_forking)
        address = _address(settings, options.pop("address", None))
        handler = self._handler(is_forking=is_forking)
        options |= {"guard": _guard(settings), "dtls": server_context(settings)}
        try:
            server = Announced(address, handler, **options)
        except (TypeError, ValueError, OverflowError) as error:
            raise UsageError(f"{error}{_sources_in(str(error), settings)}") from None
        server._is_forking = is_forking  # noqa: SLF001 - so that even one worker can be replaced
        return server

    def _announce(self, server: Server) -> None:
        where = format_address(server.address)
        if self._style == "console":
            note(f"serving {where} (process {os.getpid()}); Ctrl-C ends it")
        else:
            logger.info("serving %s", where, extra={"fields": {"address": where}})
        if server.health_address is not None:
            logger.info("health at http://%s", format_address(server.health_address))
        if self._status is not None:
            self._status.start(server)

    def _conclude(self, server: Server) -> int:
        try:
            said = summary(server, time.monotonic() - self._started)
        except RuntimeError:  # it was stopped before it opened a socket
            return SUCCESS
        found = counters(server)
        if self._settings.get("json"):
            print(json.dumps(found))
        elif self._style == "console":
            note(said)
        else:
            logger.info("stopped: %s", said, extra={"fields": found})
        return SUCCESS

    def _handler(self, *, is_forking: bool) -> Callable[..., Any]:
        settings = self._settings
        if settings.get("app") is not None:
            is_factory = settings.get("factory", False)
            return self._function("app", is_forking=is_forking, is_factory=is_factory)
        if settings.get("sink"):
            return _sink(settings)
        if settings.get("print"):
            return Printer(erases=self._status is not None)
        return discard if settings.get("discard") else echo

    def _function(
        self, option: str, *, is_forking: bool, is_factory: bool = False
    ) -> Callable[..., Any]:
        """Return the function that an option names."""
        from tomada._server.app import App

        app = App(
            self._settings.get(option),
            self._settings.get("app-dir"),
            is_factory=is_factory,
            option=option,
            source=self._settings.source(option),
        )
        # Workers import the app themselves. If this process had imported it, its forks would
        # already contain it, and would not import new code.
        return app if is_forking else app.load()


def _is_forking(settings: Settings) -> bool:
    return settings.get("workers", 1) > 1 or bool(settings.get("reload"))


def _companions(settings: Settings) -> Iterator[Any]:
    """Create the parts that run beside the server, which have the methods `start` and `end`."""
    if settings.get("reload"):
        from tomada._cli.reloading import Reloading

        yield Reloading(Path(settings.get("app-dir", ".")))
    if settings.get("otel"):
        from tomada._cli.otel import Exporter

        yield Exporter()


def _check(settings: Settings) -> None:
    for name in ("factory", "takes"):
        if settings.get(name) and settings.get("app") is None:
            raise ConfigError(f"{name} needs app ({settings.source(name)})")
    if settings.get("reload") and settings.get("app") is None:
        raise ConfigError(f"reload needs app ({settings.source('reload')})")
    if isinstance(settings.get("health"), str):
        raise ConfigError(f"health must be HOST:PORT ({settings.source('health')})")


def _address(settings: Settings, address: Any) -> Any:
    """Return the address to serve; ``None`` means the sockets of systemd or of ``fd``."""
    from tomada._server.listeners import is_passed

    if is_passed():
        if address is None and settings.get("fd") is None:
            return None
        name = "fd" if address is None else "address"
        logger.warning(
            "ignoring the sockets that systemd passed, because of %s (%s)",
            name,
            settings.source(name),
        )
    elif os.environ.get("LISTEN_FDS"):
        logger.warning(
            "ignoring LISTEN_FDS: LISTEN_PID is %s, not this process (%d)",
            os.environ.get("LISTEN_PID") or "not set",
            os.getpid(),
        )
    return (HOST, PORT) if address is None and settings.get("fd") is None else address


def _sink(settings: Settings) -> Sink:
    from tomada.sinks import from_url

    try:
        return from_url(settings.get("sink"))
    except (ImportError, ValueError, TypeError) as error:
        raise UsageError(f"sink: {error} ({settings.source('sink')})") from None


def _sources_in(message: str, settings: Settings) -> str:
    """Return, in parentheses, where the options that an error names were set."""
    named = (
        option
        for option in OPTIONS
        if option.name in settings.by_name and re.search(rf"\b{option.target}\b", message)
    )
    sources = dict.fromkeys(settings.source(option.name) for option in named)
    return f" ({', '.join(sources)})" if sources else ""


def _guard(settings: Settings) -> Guard | None:
    from tomada import Guard

    options = settings.of(OPTIONS, "guard")
    try:
        return Guard(**options) if options else None
    except (ValueError, OverflowError) as error:
        names = [option.name for option in OPTIONS if option.target in options]
        sources = dict.fromkeys(map(settings.source, names))
        raise UsageError(f"{error} ({', '.join(sources)})") from None


@contextlib.contextmanager
def _shared_metrics(settings: Settings) -> Iterator[None]:
    """Have prometheus-client share the metrics of all workers in a temporary directory.

    It reads the directory's name when it is imported, so this must come first.
    """
    import importlib.util
    import tempfile

    name = "PROMETHEUS_MULTIPROC_DIR"
    has_client = importlib.util.find_spec("prometheus_client") is not None
    if not (settings.get("health") and _is_forking(settings) and has_client) or name in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="tomada-metrics-") as directory:
        os.environ[name] = directory
        yield


def _explained(error: Exception) -> tuple[Exception, str]:
    """Return the exception to report, and the traceback if the user's code failed."""
    from tomada._server.app import AppError

    if isinstance(error, CommandError):
        return error, ""
    if isinstance(error, AppError):
        return CommandError(str(error)), ""
    told = [one for one in getattr(error, "__notes__", ()) if one.startswith("In the worker:")]
    if told:
        code = told[0].partition("\n\n")[2].rstrip()
    elif isinstance(error, SyntaxError) or _is_of_user(error):
        code = "".join(traceback.format_exception(error)).rstrip()
    elif isinstance(error, OSError | ValueError):
        return CommandError(str(error)), ""
    else:
        return error, ""
    name = type(error).__name__
    line = f"cannot start: {name}: {error}" if str(error) else f"cannot start: {name}"
    return CommandError(line), code


def _is_of_user(error: Exception) -> bool:
    """Return whether an error was raised outside of this package and the standard library."""
    ours, standard = str(Path(__file__).parents[1]), sysconfig.get_path("stdlib")
    packages = str(Path(standard, "site-packages"))
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(
        not file.startswith((ours, "<frozen"))
        and (not file.startswith(standard) or file.startswith(packages))
        for file in files
    )


def echo(data: bytes, _address: Any) -> bytes:
    return data


def discard(_data: bytes, _address: Any) -> None:
    return None


class Printer:
    """A handler that prints each datagram on its own line, without replying.

    :param erases: Whether there is a status line on the terminal.
    """

    def __init__(self, *, erases: bool) -> None:
        self._before = ERASE if erases and sys.stdout.isatty() else ""

    def __call__(self, data: bytes, address: Any) -> None:
        """Print a datagram."""
        line = f"{format_address(address)} {len(data)} bytes: {shown(data)}"
        put_line(f"{self._before}{line}", sys.stdout)
