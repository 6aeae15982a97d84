"""A build without DTLS. With it, these tests hide that part of the core."""

import subprocess
import sys

import pytest

from skips import NO_DTLS

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")

HIDE = """
import sys
from tomada import _core
for name in [name for name in dir(_core) if "dtls" in name.lower() or "OPENSSL" in name]:
    delattr(_core, name)
"""


def run(code):
    """Run a program without DTLS; return its status and what it has printed."""
    command = [sys.executable, "-c", HIDE + code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_import_says_how_to_get_it():
    status, said = run("import tomada.dtls")
    assert status == 1
    assert f"ImportError: {NO_DTLS}" in said
    assert "built with TOMADA_DTLS=no" in said
    assert "install a wheel, or build it again without that setting" in said


@pytest.mark.parametrize(
    "words",
    [
        ["serve", "127.0.0.1:0", "--dtls-psk-file", "keys"],
        ["send", "127.0.0.1:9", "hello", "--dtls"],
        ["bench", "127.0.0.1:9", "--dtls"],
    ],
    ids=lambda words: words[0],
)
def test_a_command_says_how_to_get_it(words):
    status, said = run(f"from tomada import cli; sys.exit(cli.main({words!r}))")
    assert status == 2
    assert f"{words[-2 if words[0] == 'serve' else -1][2:]}: {NO_DTLS}" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "call",
    [
        "tomada.Client(('127.0.0.1', 9), dtls=object())",
        "tomada.Server(('127.0.0.1', 0), print, dtls=object())",
        "asyncio.run(tomada.asyncio.Client(('127.0.0.1', 9), dtls=object()).request(b''))",
    ],
)
def test_an_argument_is_refused(call):
    status, said = run(f"import asyncio, tomada, tomada.asyncio; {call}")
    assert status == 1
    assert "TypeError: dtls must be a tomada.dtls.Context, not <object object at" in said


def test_everything_else_works():
    code = """
import asyncio, tomada, tomada.asyncio, tomada.testing

async def ask(address):
    async with tomada.asyncio.Client(address, timeout=60) as client:
        return await client.request(b"again")

with tomada.Server(("127.0.0.1", 0), lambda data, address: data.upper()) as server:
    with tomada.Client(server.address, timeout=60) as client:
        print(client.request(b"hello"), tomada.asyncio.run(ask(server.address)))
    print(server.dtls_stats())
"""
    assert run(code) == (0, "b'HELLO' b'AGAIN'\n{}\n")
