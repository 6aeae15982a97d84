"""``tomada send``, to plain sockets."""

import json
import socket as std
import time

import pytest

import tomada
from command import Echo, at, run
from support import eventually
from tomada import cli

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")


@pytest.fixture
def receiver(inet):
    with inet.bound(std) as sock:
        yield sock


def test_send_sends_each_argument_as_a_datagram(receiver):
    status, output, errors = run("send", at(receiver.getsockname()), "one", "two words", "")
    assert (status, output) == (0, "")
    assert f"sent 3 datagrams, 12 bytes, to {at(receiver.getsockname())}" in errors
    assert [receiver.recv(100) for _ in range(3)] == [b"one", b"two words", b""]


def test_send_sends_each_input_line_as_a_datagram(receiver):
    status, _, _ = run("send", at(receiver.getsockname()), stdin="olá\n\nlast".encode())
    assert status == 0
    assert [receiver.recv(100) for _ in range(3)] == ["olá".encode(), b"", b"last"]


def test_send_sends_lines_that_are_not_text_unchanged(receiver):
    run("send", at(receiver.getsockname()), stdin=b"\xff\xfe\n")
    assert receiver.recv(100) == b"\xff\xfe"


def test_send_sends_a_file_as_one_datagram(receiver, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"two\nlines\n")
    assert run("send", at(receiver.getsockname()), "--file", path)[0] == 0
    assert run("send", at(receiver.getsockname()), "--file", "-", stdin=b"in\nput")[0] == 0
    assert [receiver.recv(100) for _ in range(2)] == [b"two\nlines\n", b"in\nput"]


def test_send_proxy_from_sends_a_header():
    def handle(data, address):
        return repr((data, address)).encode()

    with tomada.Server(("127.0.0.1", 0), handle, proxy=["127.0.0.1"]) as server:
        source = ("--proxy-from", "192.0.2.1:9")
        status, output, _ = run("send", at(server.address), "hello", "--expect-reply", *source)
        assert (status, output) == (0, "(b'hello', ('192.0.2.1', 9))\n")
        assert run("send", at(server.address), "hello", *source)[0] == 0
        eventually(lambda: server.stats().received == 2)


@pytest.mark.parametrize("mode", [(), ("--expect-reply",)])
def test_send_proxy_from_must_be_numeric(mode):
    status, _, errors = run("send", "127.0.0.1:9", "x", "--proxy-from", "example.org:9", *mode)
    assert status == 1
    assert "the address must be numeric" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("order", [("--hex", "00ff", "0a"), ("00ff", "0a", "--hex")])
def test_send_hex_sends_bytes(receiver, order):
    assert run("send", at(receiver.getsockname()), *order)[0] == 0
    assert [receiver.recv(100) for _ in range(2)] == [b"\0\xff", b"\n"]


@pytest.mark.parametrize(
    "source", [(("a", "b"), b""), ((), b"a\nb\n")], ids=["arguments", "standard input"]
)
def test_send_count_repeats_everything(receiver, source):
    arguments, stdin = source
    assert run("send", at(receiver.getsockname()), *arguments, "--count", 3, stdin=stdin)[0] == 0
    assert [receiver.recv(100) for _ in range(6)] == [b"a", b"b"] * 3


def test_send_rate_is_kept(receiver):
    started = time.monotonic()
    assert run("send", at(receiver.getsockname()), "x", "--count", 11, "--rate", 100)[0] == 0
    assert time.monotonic() - started >= 0.1  # the first is sent immediately
    assert [receiver.recv(100) for _ in range(11)] == [b"x"] * 11


def test_send_prints_replies():
    with Echo() as echo:
        status, output, errors = run("send", at(echo.address), "--expect-reply", "a", "b\tc\n")
    assert (status, output) == (0, "a\nb\\tc\\n\n")
    assert "sent 2 datagrams, 2 answered" in errors


def test_send_prints_replies_that_are_not_text_in_hexadecimal():
    with Echo() as echo:
        status, output, _ = run("send", at(echo.address), "--expect-reply", "--hex", "00ff")
    assert (status, output) == (0, "0x00ff\n")


def test_send_prints_replies_as_json():
    with Echo() as echo:
        status, output, errors = run(
            "send", at(echo.address), "--expect-reply", "--json", "--hex", "61", "ff"
        )
    first, second, summary = map(json.loads, output.splitlines())
    assert (status, errors) == (0, "")
    assert first["reply"] == {"size": 1, "text": "a"}
    assert second["reply"] == {"size": 1, "hex": "ff"}
    assert first["seconds"] > 0
    assert summary == {"sent": 2, "replies": 2, "lost": 0}


def test_send_prints_a_summary_as_json(receiver):
    status, output, _ = run("send", at(receiver.getsockname()), "--json", "abc")
    assert status == 0
    assert json.loads(output) == {
        "sent": 1,
        "bytes": 3,
        "to": at(receiver.getsockname()),
        "is_refused": False,
    }


def test_send_retransmits_lost_requests():
    seen = []
    with Echo(lambda data: seen.append(data) or len(seen) > 2) as echo:
        status, output, _ = run("send", at(echo.address), "x", "--expect-reply", "--timeout", 20)
    assert (status, output) == (0, "x\n")
    assert echo.received[:3] == [b"x"] * 3


def test_send_without_a_reply_fails_and_continues_with_the_others():
    with Echo(lambda data: data != b"lost") as echo:
        status, output, errors = run(
            "send",
            at(echo.address),
            "lost",
            "x",
            "--expect-reply",
            "--timeout",
            0.2,
            "--retries",
            1,
        )
        eventually(lambda: echo.received.count(b"lost") == 2)
    assert (status, output) == (1, "x\n")
    assert f"tomada send: no reply from {at(echo.address)}: 2 attempts in 0." in errors
    assert "sent 2 datagrams, 1 answered" in errors


@pytest.mark.parametrize("expects", [(), ("--expect-reply", "--timeout", "0.1")])
def test_send_to_a_closed_port_is_a_failure(receiver, expects):
    where = at(receiver.getsockname())
    receiver.close()
    status, _, errors = run("send", where, "x", *expects)
    assert status == 1
    assert (
        "Connection refused" in errors
        if expects
        else f"no program is listening on {where}" in errors
    )


def test_send_accepts_a_path_as_address(unix):
    with unix.bound(std) as sock:
        assert run("send", sock.getsockname(), "x")[0] == 0
        assert sock.recv(10) == b"x"


def test_send_accepts_an_abstract_name_as_address():
    with std.socket(std.AF_UNIX, std.SOCK_DGRAM) as sock:
        sock.bind("")
        sock.settimeout(10)
        assert run("send", "@" + sock.getsockname()[1:].decode(), "x")[0] == 0
        assert sock.recv(10) == b"x"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["127.0.0.1"], "'127.0.0.1' has no port: write HOST:PORT"),
        (["::1:80"], "write an IPv6 address as [::1]:1234"),
        (["[::1:80"], "write an IPv6 address as [::1]:1234"),
        (["127.0.0.1:x"], "'x' is not a port"),
        (["127.0.0.1:65536"], "'65536' is not a port"),
        (["127.0.0.1:1", "--count", "0"], "'0' is not a whole number from 1 up"),
        (["127.0.0.1:1", "--rate", "-1"], "'-1' is not a number greater than 0"),
        (["127.0.0.1:1", "--timeout", "nan"], "'nan' is not a number of seconds"),
        (["127.0.0.1:1", "--retries", "x"], "'x' is not a whole number from 0 up"),
        (["127.0.0.1:1", "--what"], "unrecognized arguments: --what"),
        ([], "the following arguments are required: HOST:PORT"),
    ],
)
def test_send_wrong_arguments_exit_with_status_2_and_a_hint(arguments, complaint, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["send", *arguments])
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["127.0.0.1:1", "--hex", "0x"], "'0x' is not hexadecimal, such as 0a0b"),
        (["127.0.0.1:1", "x", "--file", "y"], "pass either TEXT or --file"),
        (["127.0.0.1:1", "--file", "/no/such/file"], "/no/such/file"),
        (["name.invalid:1", "x"], "Name or service not known"),
        (["/no/such/socket", "x"], "No such file or directory"),
    ],
)
def test_send_errors_exit_with_status_1_and_one_line(arguments, complaint, capsys):
    assert cli.main(["send", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("tomada send: ")
    assert error.count("\n") == 1
    assert complaint in error
