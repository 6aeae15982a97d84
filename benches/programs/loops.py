"""Event loops: which one runs a program, and how the program learns that it is to end."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from benches.programs.run import Run


def start(run: Run, main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine on the loop that the options name."""
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if run.loop == "uvloop":
        import uvloop  # noqa: PLC0415 - only where it is what is measured

        factory = uvloop.new_event_loop
    if run.loop == "aiofastnet":
        import aiofastnet  # noqa: PLC0415 - as uvloop

        factory = aiofastnet.loop_factory()
    if run.loop == "tomada":
        import tomada.asyncio  # noqa: PLC0415 - as uvloop

        factory = tomada.asyncio.EventLoop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)


def input_end() -> asyncio.Future[None]:
    """Return a future that is done when standard input is closed."""
    loop = asyncio.get_running_loop()
    end = loop.create_future()

    def finish() -> None:
        loop.remove_reader(sys.stdin)
        end.set_result(None)

    loop.add_reader(sys.stdin, finish)
    return end


async def until_input_ends(work: Coroutine[Any, Any, None]) -> None:
    """Do some work until standard input is closed."""
    task = asyncio.create_task(work)
    await asyncio.wait([task, input_end()], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()  # it has failed
    task.cancel()
