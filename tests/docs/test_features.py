"""The table of features: its statements about each library match what the library does here."""

import contextlib
import os
import re
import socket as std
import sys
from pathlib import Path

import pytest

from libraries import LIBRARIES, library
from support import DEADLINE

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")

PAGE = Path(__file__).parents[2] / "docs" / "features.md"
SOL_UDP, UDP_GRO = 17, 104
VOLUME = 150  # a receive buffer holds this many datagrams


def table():
    """Read the page's table of tested features: a dictionary of rows by library."""
    text = PAGE.read_text(encoding="utf-8").partition("## Tested features")[2].partition("\n\n*")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in re.findall(r"^\|.*\|$", text, re.MULTILINE)
    ]
    columns = rows[0][1:]
    return {row[0]: dict(zip(columns, row[1:], strict=True)) for row in rows[2:]}


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
    said = table()[row][name].partition(",")[0]
    if said == "newer":
        if sys.version_info[:2] == (3, 12):
            pytest.skip("it depends on the release of 3.12")
        said = "yes" if sys.version_info >= (3, 13) else "no"
    assert find_out(name, row, plain, str(tmp_path / "s")) == said


def test_features_table_has_every_tested_feature():
    assert list(table()) == list(ROWS)
    assert all(list(cells) == list(LIBRARIES) for cells in table().values())
