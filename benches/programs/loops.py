"""Event loops: start the one that the options name, and end it when standard input is closed."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from benches.programs.run import Run

FACTORIES: dict[str, Callable[[Any], Callable[[], asyncio.AbstractEventLoop]]] = {
    "asyncio": lambda module: module.new_event_loop,
    "uvloop": lambda module: module.new_event_loop,
    "aiofastnet": lambda module: module.loop_factory(),
    "rloop": lambda module: module.new_event_loop,
    "tomada.asyncio": lambda module: module.EventLoop,
}


def start(run: Run, main: Callable[[], Coroutine[Any, Any, None]], *, ends: bool = False) -> None:
    """Run a coroutine until standard input is closed, or until it returns if it ``ends``."""
    if run.loop == "trio":
        import trio  # noqa: PLC0415 - only where it is measured

        async def until_end_on_trio() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(main)
                await trio.lowlevel.wait_readable(sys.stdin)
                nursery.cancel_scope.cancel()

        trio.run(main if ends else until_end_on_trio)
        return

    async def until_end() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.create_task(main())
        loop.add_reader(sys.stdin.fileno(), task.cancel)  # rloop accepts only a descriptor
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()  # raises the task's error, if it failed

    if run.loop == "tomada-auto":
        from tomada.asyncio import run as run_on  # noqa: PLC0415 - as above

        run_on(main() if ends else until_end(), loop="auto")
        return
    name = "tomada.asyncio" if run.loop == "tomada" else run.loop
    with asyncio.Runner(loop_factory=FACTORIES[name](importlib.import_module(name))) as runner:
        runner.run(main() if ends else until_end())
