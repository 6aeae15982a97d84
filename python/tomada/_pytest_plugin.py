"""The pytest plug-in: fixtures, and seeds that ``--udp-seed`` reproduces.

pytest imports it in every run in which tomada is installed, so it imports only what it needs.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tomada._testing import seeds

if TYPE_CHECKING:
    from tomada._testing.clock import VirtualClock
    from tomada._testing.link import Link
    from tomada._testing.network import Network
    from tomada.server import Server

_BASE = pytest.StashKey[int]()
_USED = pytest.StashKey[list[int]]()
# Marks functions that already run on the clock, because a test may be repeated.
_MARK = "_udp_clock"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    group = parser.getgroup("tomada")
    group.addoption(
        "--udp-seed",
        type=int,
        metavar="N",
        help="repeat the losses, delays and orders of a run: the number that its failures show",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Choose the seed of the run; in a worker of pytest-xdist, use the seed of the run."""
    given = getattr(config, "workerinput", {}).get("udp_seed", config.getoption("--udp-seed"))
    config.stash[_BASE] = seeds.fresh() if given is None else given


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give the seed to a worker of pytest-xdist."""
    node.workerinput["udp_seed"] = node.config.stash[_BASE]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Derive a test's seeds from the seed of the run and the test's name."""
    used = item.stash[_USED] = []

    draw = seeds.of_test(item.config.stash[_BASE], item.nodeid)

    def noted() -> int:
        seed = draw()
        used.append(seed)
        return seed

    seeds.use(noted)
    try:
        return (yield)
    finally:
        seeds.use(None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show the seed of a failure, if the test has used one."""
    report: Any = yield
    if report.failed and item.stash.get(_USED, []):
        text = f"repeat it with --udp-seed={item.config.stash[_BASE]}"
        report.sections.append(("UDP seed", text))
    return report  # type: ignore[no-any-return]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Run a coroutine function that uses ``udp_clock`` on that clock."""
    if not isinstance(item, pytest.Function) or "udp_clock" not in item.fixturenames:
        return
    function = item.obj
    if not inspect.iscoroutinefunction(function) or hasattr(function, _MARK):
        return

    @functools.wraps(function)
    async def on_clock(*args: Any, **kwargs: Any) -> Any:
        import asyncio  # noqa: PLC0415 - used only here

        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(
                "udp_clock is a clock for asyncio; trio has its own: the fixture autojump_clock"
            ) from None
        clock: Any = item.funcargs["udp_clock"]
        with clock.on(loop):
            return await function(*args, **kwargs)

    setattr(on_clock, _MARK, True)
    item.obj = on_clock


@pytest.fixture
def udp_server() -> Iterator[Callable[..., Server]]:
    """Provide a function that starts servers on free ports of 127.0.0.1.

    ``server = udp_server(handler)`` starts one. Without a handler, the server replies with the
    request's data. It takes the keyword arguments of :class:`tomada.Server`. All servers are
    stopped after the test.
    """
    from tomada.server import Server  # noqa: PLC0415 - pytest imports this module in every run

    with contextlib.ExitStack() as stack:

        def start(
            handler: Callable[..., Any] | None = None,
            *,
            address: Any = ("127.0.0.1", 0),
            **options: Any,
        ) -> Server:
            return stack.enter_context(Server(address, handler or _echo, **options))

        yield start


def _echo(data: bytes, _: Any) -> bytes:
    return data


@pytest.fixture
def udp_link() -> Iterator[Callable[..., Link]]:
    """Provide a function that starts links.

    ``link = udp_link(server, loss=0.1)`` starts one. It takes the arguments of
    :func:`tomada.testing.impaired`. All links are closed after the test.
    """
    from tomada.testing import impaired  # noqa: PLC0415 - as above

    with contextlib.ExitStack() as stack:

        def start(upstream: Any, **options: Any) -> Link:
            return stack.enter_context(impaired(upstream, **options))

        yield start


@pytest.fixture
def udp_network() -> Callable[..., Network]:
    """Provide a function that creates networks in memory.

    ``net = udp_network(loss=0.1)`` creates one. It takes the arguments of
    :func:`tomada.testing.network`. A network lasts as long as its endpoints' event loop.
    """
    from tomada.testing import network  # noqa: PLC0415 - as above

    return network


@pytest.fixture
def udp_clock() -> VirtualClock:
    """Provide a virtual clock and run the test on it if the test is an asyncio coroutine function.

    Other tests call ``udp_clock.run(main())``. See :class:`tomada.testing.VirtualClock`.
    """
    from tomada._testing.clock import VirtualClock  # noqa: PLC0415 - as above

    return VirtualClock()


@pytest.fixture
def assert_no_udp_leaks() -> Iterator[None]:
    """Fail if the test leaves a UDP socket, a child process or a thread behind."""
    from tomada._testing.leaks import assert_no_udp_leaks as checked  # noqa: PLC0415 - as above

    with checked():
        yield
