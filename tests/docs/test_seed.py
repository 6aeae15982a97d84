"""The examples of the original specification, with tomada or the standard module at either end."""

import signal
import socket as std
from pathlib import Path

import pytest

from support import DEADLINE, Child

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")

EXAMPLES = Path(__file__).parents[2] / "examples" / "seed"
IMPORTS = {"tomada": "from tomada import socket\n", "standard": "import socket\n"}

every_server = pytest.mark.parametrize("server_module", IMPORTS)
every_client = pytest.mark.parametrize("client_module", IMPORTS)


@pytest.fixture
def start(tmp_path, port):
    """Start a copy of an example, with its import line and port replaced."""

    def start(name, module, *more):
        text = (EXAMPLES / name).read_text(encoding="utf-8")
        for old, new in ((IMPORTS["tomada"], IMPORTS[module]), ("1234", str(port)), *more):
            assert text.count(old) == 1
            text = text.replace(old, new)
        copy = tmp_path / f"{module}_{name}"
        copy.write_text(text, encoding="utf-8")
        return Child("-u", copy)

    return start


def run_client(start, module):
    with start("client.py", module) as client:
        status, output, errors = client.end()
    assert (status, errors) == (0, "")
    return output


@every_server
@every_client
def test_client_receives_its_replies(start, port, server_module, client_module):
    with start("server.py", server_module) as server:
        assert server.line() == f"Waiting on 127.0.0.1, port {port}. Ctrl-C ends this program."
        assert run_client(start, client_module).splitlines() == [
            f"('127.0.0.1', {port}) answered 'OLÁ, MUNDO'",
            "The server answered 'HELLO AGAIN'",
        ]
        assert server.line().endswith(" sent 'olá, mundo'")
        assert server.line().endswith(" sent 'hello again'")


@every_server
def test_server_serves_one_client_after_another(start, server_module):
    with start("server.py", server_module) as server:
        server.line()
        first, second = (run_client(start, module) for module in IMPORTS)
        assert first == second


@every_server
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_the_server(start, server_module):
    with start("server.py", server_module) as server:
        server.line()
        server.until_it_waits()
        server.signal(signal.SIGINT)
        assert server.end() == (0, "Interrupted.\n", "")


@every_server
def test_empty_datagram_ends_the_server(start, port, server_module):
    with start("server.py", server_module) as server:
        server.line()
        with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
            sock.sendto(b"", ("127.0.0.1", port))
        assert server.end() == (0, "", "")


@every_server
def test_server_survives_datagrams_that_are_not_text(start, port, server_module):
    with (
        start("server.py", server_module) as server,
        std.socket(std.AF_INET, std.SOCK_DGRAM) as sock,
    ):
        server.line()
        sock.settimeout(DEADLINE)
        sock.sendto(b"\xff not text", ("127.0.0.1", port))
        assert sock.recv(100).decode() == "\ufffd NOT TEXT"


@every_client
def test_client_without_a_server_says_so(start, client_module):
    with start("client.py", client_module, ("settimeout(2)", "settimeout(0.05)")) as client:
        status, output, errors = client.end()
    assert status == 1
    assert output == ""
    assert errors.splitlines()[-1] == "TimeoutError: timed out"


@pytest.mark.parametrize("name", ["server.py", "client.py"])
def test_example_is_short_and_uses_the_specified_address(name):
    lines = (EXAMPLES / name).read_text(encoding="utf-8").splitlines()
    assert 15 <= len(lines) <= 25
    assert any("127.0.0.1" in line for line in lines)
    assert any("1234" in line for line in lines)
