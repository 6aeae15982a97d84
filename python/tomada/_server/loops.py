"""The event loops that a server can run on. asyncio is imported only when one of them runs."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable

# The loops that have a name: a module, and its function or class that creates one.
LOOPS = {
    "tomada": ("tomada.asyncio", "EventLoop"),
    "asyncio": ("asyncio", "SelectorEventLoop"),
    "uvloop": ("uvloop", "new_event_loop"),
}


def check_loop(loop: Any) -> None:
    """Raise an exception if a server cannot create its event loop from this option.

    :raises TypeError: It is an event loop, or any other object that is not a factory.
    :raises ValueError: It is an unknown name.
    :raises ModuleNotFoundError: The loop's package is not installed.
    """
    if isinstance(loop, str):
        if loop not in LOOPS:
            names = ", ".join(map(repr, LOOPS))
            raise ValueError(
                f"loop must be one of {names}, or a function that creates one, not {loop!r}"
            )
        module, _ = LOOPS[loop]
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            raise ModuleNotFoundError(
                f"loop={loop!r} needs a package: pip install {module}", name=module
            )
    elif not (loop is None or callable(loop)):
        raise TypeError(
            f"loop must be a name, a function or None, not {type(loop).__name__}: each worker "
            "creates its own loop"
        )


def loop_factory(loop: Any) -> Callable[[], AbstractEventLoop]:
    """Return the function that creates a server's event loop."""
    if not callable(loop):
        module, name = LOOPS["tomada" if loop is None else loop]
        loop = getattr(importlib.import_module(module), name)
    factory: Callable[[], AbstractEventLoop] = loop
    return factory
