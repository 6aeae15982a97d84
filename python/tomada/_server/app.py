"""Handlers: importing them by name in workers, and rejecting unsupported kinds."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class AppError(ValueError):
    """Says in one line, for the user, why a name does not refer to a handler."""


class App:
    """A handler that each worker imports, so that new workers run new code.

    The process that creates it does not import the module, because each worker is a copy of that
    process and must load the code itself.

    :param name: ``MODULE:HANDLER``.
    :param directory: Where the module is searched first: by default, in the current directory.
    :param is_factory: Whether the name is that of a function that returns the handler.
    :param option: The option that sets the name, for errors.
    :param source: Where it is set, for errors.
    :raises AppError: The name has another form.
    """

    def __init__(
        self,
        name: str,
        directory: str | None = None,
        *,
        is_factory: bool = False,
        option: str = "app",
        source: str = "--app",
    ) -> None:
        self._name, self._is_factory = name, is_factory
        self._directory = directory
        self._option, self._source = option, source
        self._module, colon, self._attribute = name.partition(":")
        if not (self._module and colon and self._attribute):
            raise self._error(f"{name!r} does not name a function: write MODULE:FUNCTION")
        if os.sep in self._module or Path(self._module).is_file():
            raise self._error(
                f"{self._module!r} is a path, not a module: "
                + _how_to_write(Path(self._module), self._attribute)
            )
        self._handler: Callable[..., Any] | None = None

    def load(self) -> Callable[..., Any]:
        """Import the handler, once in each process.

        :raises AppError: The module has no such handler. Exceptions of the module itself propagate.
        """
        if self._handler is None:
            self._handler = self._import()
        return self._handler

    def _import(self) -> Callable[..., Any]:
        here = str(Path(self._directory or ".").resolve())
        if here not in sys.path:
            sys.path.insert(0, here)
        # Files may be newer than the directory listings cached by this process's parent.
        importlib.invalidate_caches()
        # Bytecode caches are validated by modification time, in whole seconds: a cache would hide
        # a second change within one second.
        before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
        try:
            found: Any = importlib.import_module(self._module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{self._module}.".startswith(f"{error.name}."):
                raise  # the module itself failed; its author needs the traceback
            where = "here" if self._directory is None else f"in {self._directory}"
            raise self._error(f"there is no module {self._module!r} {where}") from None
        finally:
            sys.dont_write_bytecode = before
        for part in self._attribute.split("."):
            try:
                found = getattr(found, part)
            except AttributeError:
                raise self._error(f"there is no {self._attribute!r} in {self._module}") from None
        if not callable(found):
            raise self._error(f"{self._name} is not a function, but {type(found).__name__}")
        if self._is_factory:
            found = self._made_by(found)
        try:
            check_handler(found, self._name)
        except TypeError as error:
            raise self._error(str(error)) from None
        handler: Callable[..., Any] = found
        return handler

    def _made_by(self, factory: Callable[[], Any]) -> Any:
        """Call the factory that creates the handler."""
        if not _takes_nothing(factory):
            raise self._error(f"{self._name} needs arguments, which a factory is called without")
        found = factory()
        if not callable(found):
            kind = type(found).__name__
            raise self._error(f"{self._name} did not return a function, but {kind}")
        return found

    def _error(self, what: str) -> AppError:
        return AppError(f"{self._option}: {what} ({self._source})")

    def __call__(self, *arguments: Any) -> Any:
        """Call the handler."""
        return self.load()(*arguments)


def _takes_nothing(function: Callable[..., Any]) -> bool:
    """Return whether a function can be called without arguments; true if that is unknown."""
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    except ValueError:  # not written in Python, so it has no signature to inspect
        pass
    return True


def _how_to_write(path: Path, handler: str) -> str:
    """Say how to write the name of a handler that is in a file."""
    path = path.resolve().with_suffix("")
    if path.is_relative_to(Path.cwd()):
        return f"write {'.'.join(path.relative_to(Path.cwd()).parts)}:{handler}"
    return f"write {path.name}:{handler}, in the directory {path.parent}"


def check_handler(function: Any, what: str = "the handler") -> None:
    """Raise :class:`TypeError` if a function cannot be a server's handler."""
    if not callable(function):
        raise TypeError(f"{what} must be callable, not {type(function).__name__}")
    if _is_any(function, inspect.isasyncgenfunction):
        raise TypeError(f"{what} is an async generator function: return the reply, do not yield it")


def check_callback(function: Any, what: str) -> None:
    """Raise :class:`TypeError` if a function cannot be a server's ``init`` or ``exit``."""
    if not (callable(function) or function is None):
        raise TypeError(f"{what} must be callable or None, not {type(function).__name__}")
    if is_async(function) or _is_any(function, inspect.isasyncgenfunction):
        raise TypeError(f"{what} is an async function: pass a plain one, or use lifespan")


def is_async(function: Any) -> bool:
    """Return whether calling a function creates a coroutine."""
    return _is_any(function, inspect.iscoroutinefunction)


def _is_any(function: Any, is_kind: Callable[[Any], bool]) -> bool:
    """Return whether a predicate holds for a function, or for an object's ``__call__``."""
    while isinstance(function, functools.partial):
        function = function.func
    call = getattr(type(function), "__call__", None)  # noqa: B004 - the function itself is needed
    return is_kind(function) or is_kind(call)
