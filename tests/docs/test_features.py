"""The table of features: its statements about each library match what the library does here."""

import contextlib
import importlib
import os
import pkgutil
import re
import socket as std
import sys
from pathlib import Path

import pytest

from libraries import LIBRARIES, library
from skips import HAS_DTLS
from support import DEADLINE

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")

PAGE = Path(__file__).parents[2] / "docs" / "features.md"
SOL_UDP, UDP_GRO = 17, 104
VOLUME = 150  # a receive buffer holds this many datagrams


OTHERS = [name for name in LIBRARIES if not name.startswith("tomada.")]


def rows(heading):
    """Read a table of the page, by the heading of its first column: lists of cells."""
    text = PAGE.read_text(encoding="utf-8").partition(f"| {heading} |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in text.splitlines()[2:]]


def others(cell):
    """Read a cell of the column for the other libraries: a dictionary of statements."""
    cell, _, newer = cell.partition("; ")
    names = re.findall(r"[\w-]+", cell)
    if names[0] == "all":
        said = {name: "no" if name in names else "yes" for name in OTHERS}
    else:
        said = {name: "yes" if name in names else "no" for name in OTHERS}
    assert set(names) <= {"all", "but", "and", "none", *OTHERS}, cell
    return said | {name: "newer" for name in re.findall(r"[\w-]+", newer) if name in OTHERS}


def table():
    """Read what the page says of sockets: dictionaries by feature and library."""
    return {
        feature: dict.fromkeys(("tomada.socket", "tomada.asyncio"), ours.partition(";")[0])
        | others(theirs)
        for feature, ours, theirs in rows("feature")
    }


@contextlib.asynccontextmanager
async def opened(udp, **addresses):
    sock = await udp.open(**addresses)
    try:
        yield sock
    finally:
        await sock.close()


@pytest.fixture
def plain():
    """Open a plain socket as the other end."""
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(DEADLINE)
        yield sock


async def sends_empty(udp, plain, _):
    async with opened(udp, remote=plain.getsockname()) as sock:
        await sock.send(b"")
        await sock.send(b"x")
        await sock.flush()
        return plain.recv(10) == b""


async def receives_the_longest(udp, plain, _):
    async with opened(udp, local=("127.0.0.1", 0)) as sock:
        plain.sendto(bytes(65507), sock.name())
        return len(await sock.recv()) == 65507


async def speaks_unix(udp, _, path):
    async with opened(udp, local=path, family=std.AF_UNIX) as sock:
        with std.socket(std.AF_UNIX, std.SOCK_DGRAM) as other:
            other.sendto(b"x", path)
        return await sock.recv() == b"x"


async def tells_of_refusal(udp, plain, _):
    address = plain.getsockname()
    plain.close()
    async with opened(udp, remote=address) as sock:
        await sock.send(b"x")
        await sock.flush()
        try:
            await sock.recv()
        except ConnectionRefusedError:
            return True
        return False


async def answers_from_where_it_was_asked(udp, plain, _):
    async with opened(udp, local=("0.0.0.0", 0)) as sock:  # noqa: S104 - that is the case
        plain.close()
        with std.socket(std.AF_INET, std.SOCK_DGRAM) as client:
            client.connect(("127.0.0.2", sock.name()[1]))
            client.send(b"x")
            await sock.recv()
            await sock.answer(b"y")
            await sock.flush()
            client.setblocking(False)
            return client.recv(10) == b"y"


async def lets_the_kernel_coalesce(udp, plain, _):
    async with opened(udp, local=("127.0.0.1", 0)) as sock:
        # Some switch it on when they receive in volume.
        for _ in range(VOLUME):
            plain.sendto(b"x", sock.name())
        for _ in range(VOLUME):
            await sock.recv()
        with std.socket(fileno=os.dup(sock.fileno())) as twin:
            return twin.getsockopt(SOL_UDP, UDP_GRO) == 1


async def sends_runs_as_one(udp, plain, _):
    plain.setsockopt(SOL_UDP, UDP_GRO, 1)
    async with opened(udp, remote=plain.getsockname()) as sock:
        await sock.send_run([bytes(100)] * 10)
        await sock.flush()
        lengths = [len(plain.recv(65535))]
        while sum(lengths) < 1000:
            lengths.append(len(plain.recv(65535)))
        return max(lengths) > 100


ROWS = {
    "sends an empty datagram": sends_empty,
    "receives 65,507 bytes": receives_the_longest,
    "supports `AF_UNIX`": speaks_unix,
    "reports a closed port": tells_of_refusal,
    "replies from the address that received the request": answers_from_where_it_was_asked,
    "receives with GRO": lets_the_kernel_coalesce,
    "sends with GSO": sends_runs_as_one,
}


def find_out(name, row, plain, path):
    udp = library(name)
    try:
        does = udp.run(ROWS[row](udp, plain, path))
    except (OSError, TimeoutError, ValueError, TypeError, NotImplementedError, AttributeError):
        does = False
    return "yes" if does else "no"


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("row", ROWS)
@pytest.mark.filterwarnings("default")  # warnings of the libraries do not matter here
def test_features_table_matches_the_libraries(name, row, plain, tmp_path):
    try:
        library(name)
    except ImportError as error:
        pytest.skip(str(error))
    said = table()[row][name]
    if said == "newer":
        if sys.version_info[:2] == (3, 12):
            pytest.skip("it depends on the release of 3.12")
        said = "yes" if sys.version_info >= (3, 13) else "no"
    assert find_out(name, row, plain, str(tmp_path / "s")) == said


def test_features_table_has_every_tested_feature():
    assert list(table()) == list(ROWS)
    assert all(cells.keys() == LIBRARIES.keys() for cells in table().values())


# Each service, with the public names by which the tests recognize it in a library.
SERVICES = {
    "DTLS": "dtls",
    "async client that retransmits": r"retransmi|retries|(udp|datagram)\w*request",
    "server with sync and async handlers": r"(udp|datagram)\w*handler|serve_(udp|datagram)",
    "PROXY protocol version 2": "proxy_?(protocol|header)|haproxy",
    "testing with loss and reordering": "impair|loss|reorder",
}


def public_names(module):
    """Find the public names of a module and of its submodules that are loaded."""
    importlib.import_module(module)
    return {
        name.lower()
        for key in list(sys.modules)
        if (key == module or key.startswith(f"{module}.")) and not key.partition("._")[2]
        for name in dir(sys.modules[key])
        if not name.startswith("_")
    }


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("service", SERVICES)
def test_services_table_matches_the_libraries(name, service):
    module = name.replace("-", "_")
    pytest.importorskip(module, reason=f"{module} is not installed")
    (said,) = [theirs for row, _, theirs in rows("service") if row == service]
    has_it = any(re.search(SERVICES[service], found) for found in public_names(module))
    assert (others(said)[name] == "yes") == has_it


def test_services_table_has_every_service_of_tomada():
    assert [service for service, *_ in rows("service")] == list(SERVICES)
    for _, ours, _ in rows("service"):
        name = re.search(r"`(tomada\.[\w.]*)", ours)[1]
        if name != "tomada.dtls" or HAS_DTLS:
            assert pkgutil.resolve_name(name)
