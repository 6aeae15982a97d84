"""The blocks of docs/how-to/dtls.md that need certificates, in a folder of their own."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import skips
from support import DEADLINE, DEVELOPMENT, Child, eventually
from tomada import socket

if skips.HAS_DTLS:
    from tomada import dtls

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "dtls.md"
BLOCKS = re.findall(r"^```text\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)


pytestmark = pytest.mark.skipif(not skips.HAS_DTLS, reason=skips.NO_DTLS)


def block(*contained):
    """Return the block that contains all texts."""
    (found,) = (text for text in BLOCKS if all(part in text for part in contained))
    return found


def make_certificates(folder):
    """Run the commands of the page."""
    skips.program("openssl")
    commands = block("openssl req", "ca.pem")
    subprocess.run(["/bin/sh", "-ec", commands], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def folder(tmp_path):
    make_certificates(tmp_path)
    return tmp_path


def start(folder, *arguments):
    return Child(*arguments, cwd=folder, env=os.environ | DEVELOPMENT)


def on(port, text):
    """Replace the documented port by a free one, so that a server on that port does not matter."""
    assert "4433" in text
    return text.replace("4433", str(port))


def ask(folder, port):
    """Run the documented client, until a server answers."""
    code = on(port, block("create_default_context(cafile"))

    def answered():
        ended = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
        )
        if ended.returncode and "ConnectionRefusedError" in ended.stderr:
            return None  # it has not started yet
        return ended

    ended = eventually(answered)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "b'HELLO'\n"


def test_server_and_client_with_certificates(folder, port):
    code = on(port, block("serve((", "lambda data, address"))
    with start(folder, "-c", code) as server:
        ask(folder, port)
        server.signal(signal.SIGINT)
        assert server.end()[0] == 0


def test_server_of_the_command_line(folder, port):
    (folder / "service.py").write_text(
        "def handle(data, address):\n    return data.upper()\n", encoding="utf-8"
    )
    program, *arguments = on(port, block("tomada serve", "--dtls-cert")).split()
    with start(folder, "-m", program, *arguments) as server:
        ask(folder, port)
        server.signal(signal.SIGTERM)
        assert server.end()[0] == 0


def test_sighup_reads_the_new_certificate(folder, port):
    (folder / "service.py").write_text(on(port, block("def reload")), encoding="utf-8")

    def presented():
        context = dtls.create_default_context(cafile=str(folder / "ca.pem"))
        plain = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        plain.settimeout(DEADLINE)
        plain.connect(("127.0.0.1", port))
        with dtls.wrap_socket(plain, context, server_hostname="localhost") as sock:
            sock.send(b"hello")
            assert sock.recv(100) == b"HELLO"
            return sock.getpeercert(binary_form=True)

    with start(folder, "service.py") as server:
        ask(folder, port)
        old = presented()
        make_certificates(folder)
        server.signal(signal.SIGHUP)

        def is_replaced():
            try:
                return presented() != old
            except dtls.DTLSError:
                return False  # the old certificate, which the new authority has not issued

        eventually(is_replaced)
        server.signal(signal.SIGTERM)
        assert server.end()[0] == 0
