"""``tomada send`` and ``tomada bench`` with DTLS."""

import json
import re
import socket as std

import pytest

from skips import NO_DTLS

pytest.importorskip("tomada.dtls", reason=NO_DTLS, exc_type=ImportError)

from certificates import certificates
from command import Serving, at, run
from dtls_pairs import KEYS, psk_server, server_of, serving
from support import Call, eventually
from tomada import Server, cli
from tomada._cli.dtls import CLIENT_DTLS, SERVER_DTLS
from tomada._cli.options import OPTIONS

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")

# A loaded machine needs more than the default.
PATIENT = ("--timeout", 60)


@pytest.fixture
def keys(tmp_path):
    """Return a function that writes a file of keys, by default with that of ``tester``."""
    right = f"tester:{KEYS['tester'].hex()}\n"

    def write(text=right):
        path = tmp_path / "keys.psk"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def ask(address, *options):
    """Return the status and the outputs of a request."""
    return run("send", at(address), "hello", "--expect-reply", *options)


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_send_verifies_the_certificate(kind):
    files = certificates()
    with serving(server_of(getattr(files, kind))) as server:
        status, output, errors = ask(server.address, "--dtls-ca", files.ca, *PATIENT)
    assert (status, output, errors) == (0, "HELLO\n", "")


def test_send_identifies_itself_to_tomada_serve():
    files = certificates()
    certificate, key = files.ecdsa
    options = ["--dtls-cert", certificate, "--dtls-key", key, "--dtls-ca", files.ca]
    certificate, key = files.client
    own = ["--dtls-cert", certificate, "--dtls-key", key]
    with Serving("127.0.0.1:0", *options) as server:
        answered = ask(server.address, "--dtls-ca", files.ca, *own, *PATIENT)
        refused = ask(server.address, "--dtls-ca", files.ca, *PATIENT)
    assert answered == (0, "hello\n", "")
    assert refused[0] == 1
    assert re.match(r"tomada send: .*\(peer 127\.0\.0\.1:\d+\)$", refused[2].rstrip())


def test_send_uses_a_key_of_a_file(keys):
    with serving(psk_server()) as server:
        assert ask(server.address, "--dtls-psk-file", keys(), *PATIENT) == (0, "HELLO\n", "")
        path = keys("a:00\n" + "".join(f"{name}:{key.hex()}\n" for name, key in KEYS.items()))
        chosen = ["--dtls-psk-file", path, "--dtls-psk-identity", "other"]
        assert ask(server.address, *chosen, *PATIENT) == (0, "HELLO\n", "")


def test_send_without_a_reply_encrypts_and_ends_the_session(keys):
    received = []

    def take(datagram):
        received.append((datagram.session.psk_identity, datagram.data))

    with Server(("127.0.0.1", 0), take, takes="datagram", dtls=psk_server()) as server:
        options = ["--dtls-psk-file", keys(), "--count", 2, *PATIENT]
        status, _, errors = run("send", at(server.address), "a", "b", *options)
        stats = eventually(lambda: (stats := server.dtls_stats())["ended"] and stats)
    assert status == 0
    assert errors == f"sent 4 datagrams, 4 bytes, to {at(server.address)}\n"
    assert received == [("tester", b"a"), ("tester", b"b")] * 2
    assert (stats["established"], stats["sessions"]) == (1, 0)


@pytest.mark.parametrize("replies", [(), ("--expect-reply",)], ids=["sends", "asks"])
def test_send_names_the_cure_of_a_wrong_key(keys, replies):
    with serving(psk_server()) as server:
        options = ["--dtls-psk-file", keys("tester:00\n"), "--timeout", 0.5, *replies]
        status, output, errors = run("send", at(server.address), "hello", *options)
    assert (status, output) == (1, "")
    assert at(server.address) in errors
    assert "uses a different pre-shared key" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("replies", [(), ("--expect-reply",)], ids=["sends", "asks"])
@pytest.mark.parametrize(
    ("server_has", "options", "text"),
    [
        ("self_signed", [], "self-signed certificate"),
        ("expired", [], "certificate has expired"),
        ("elsewhere", [], "as 127.0.0.1"),
        ("ecdsa", ["--dtls-server-hostname", "example.com"], "as example.com"),
    ],
)
def test_send_refuses_a_wrong_certificate(replies, server_has, options, text):
    files = certificates()
    with serving(server_of(getattr(files, server_has))) as server:
        options = ["--dtls-ca", files.ca, *options, *replies, *PATIENT]
        status, output, errors = run("send", at(server.address), "hello", *options)
        assert server.dtls_stats()["established"] == 0
    assert (status, output) == (1, "")
    assert "certificate verify failed" in errors
    assert text in errors
    assert "Traceback" not in errors
    # The errors of the library name functions; those of a command name its options.
    assert not re.search(r"load_verify_locations|server_hostname", errors)
    assert "--dtls-" in errors or text == "certificate has expired"


def test_send_dtls_trusts_the_issuers_of_the_system():
    with serving(server_of(certificates().ecdsa)) as server:
        status, _, errors = ask(server.address, "--dtls", *PATIENT)
    assert status == 1
    assert "certificate verify failed" in errors


def test_send_accepts_the_name_that_it_is_told():
    files = certificates()
    with serving(server_of(files.elsewhere)) as server:
        name = ["--dtls-server-hostname", "elsewhere.example"]
        answered = ask(server.address, "--dtls-ca", files.ca, *name, *PATIENT)
    assert answered == (0, "HELLO\n", "")


@pytest.mark.parametrize("command", [("send", "hello"), ("bench",)], ids=["send", "bench"])
def test_dtls_says_that_no_program_listens(keys, command):
    name, *words = command
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.connect(sock.getsockname())  # the kernel refuses what others send
        where = at(sock.getsockname())
        status, _, errors = run(name, where, *words, "--dtls-psk-file", keys(), *PATIENT)
    assert (status, errors) == (1, f"tomada {name}: no program is listening on {where}\n")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--dtls-key", "x"], "dtls-key needs dtls-cert (--dtls-key)"),
        (["--dtls-psk-identity", "x"], "dtls-psk-identity needs dtls-psk-file"),
        (["--dtls-ca", "/none"], "dtls-ca: [Errno 2] No such file or directory: '/none'"),
        (["--dtls-cert", "/none"], "dtls-cert: [Errno 2]"),
        (["--dtls-psk-file", "/none"], "dtls-psk-file: [Errno 2]"),
    ],
)
@pytest.mark.parametrize("command", [("send", "hello"), ("bench",)], ids=["send", "bench"])
def test_an_option_that_cannot_be_used_is_named(capsys, command, options, text):
    name, *words = command
    assert cli.main([name, "127.0.0.1:9", *words, *options]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"tomada {name}: ")
    assert text in errors


@pytest.mark.parametrize(
    ("content", "options", "text"),
    [
        ("", [], "has no keys: write one on each line, as IDENTITY:HEXKEY (--dtls-psk-file)"),
        ("a:00\nb:01\n", [], "has 2 keys: choose one with --dtls-psk-identity (--dtls-psk-file)"),
        ("a:00\nb:01\n", ["--dtls-psk-identity", "c"], "has no key for 'c' (--dtls-psk-file)"),
        ("a:zz\n", [], "line 1 of "),
    ],
)
def test_a_file_without_the_key_is_named(capsys, keys, content, options, text):
    path = keys(content)
    arguments = ["send", "127.0.0.1:9", "hello", "--dtls-psk-file", str(path), *options]
    assert cli.main(arguments) == 2
    errors = capsys.readouterr().err
    assert str(path) in errors
    assert text in errors


@pytest.mark.parametrize(
    "arguments",
    [
        ["send", "./a.sock", "hello", "--dtls"],
        ["bench", "./a.sock", "--dtls"],
        ["bench", "--local", "--dtls"],
    ],
)
def test_dtls_needs_an_address_of_ip(capsys, arguments):
    assert cli.main(arguments) == 2
    assert "DTLS needs the address of a server as HOST:PORT" in capsys.readouterr().err


def test_dtls_excludes_proxy_from(capsys):
    arguments = ["send", "127.0.0.1:9", "hello", "--dtls", "--proxy-from", "192.0.2.1:53"]
    assert cli.main(arguments) == 2
    assert "--proxy-from cannot be combined with DTLS" in capsys.readouterr().err


def test_bench_measures_sessions(keys):
    path = keys(f"tester:{'0b' * 16}\n")
    with Serving("127.0.0.1:0", "--dtls-psk-file", path) as server:
        options = ["--clients", 3, "--window", 4, "--duration", 0.2, "--json"]
        options += ["--dtls-psk-file", path, *PATIENT]
        status, output, errors = run("bench", at(server.address), *options)
    result = json.loads(output)
    assert (status, errors) == (0, "")
    assert result["received"] == result["sent"] > 0
    assert (result["lost"], result["late"], result["refused"]) == (0, 0, 0)


def test_bench_names_the_cure_of_a_wrong_key(keys):
    with serving(psk_server()) as server:
        options = ["--dtls-psk-file", keys("tester:00\n"), "--timeout", 0.5, "--duration", 0.1]
        status, _, errors = run("bench", at(server.address), *options)
    assert status == 1
    assert "uses a different pre-shared key" in errors


def test_bench_refuses_a_size_that_no_record_carries(keys):
    with serving(psk_server()) as server:
        options = ["--dtls-psk-file", keys(), "--size", 1400, *PATIENT]
        status, _, errors = run("bench", at(server.address), *options)
    assert status == 1
    assert re.match(r"tomada bench: a DTLS record carries at most 1,3\d\d bytes, not 1,400", errors)


def test_bench_ends_with_the_session(keys):
    with serving(psk_server()) as server:
        options = ["--dtls-psk-file", keys(), "--duration", 60, *PATIENT]
        ended = Call(run, "bench", at(server.address), *options)
        eventually(lambda: server.stats().received)
        server.stop()
        status, _, errors = ended.result()
    assert (status, errors) == (1, "tomada bench: the server has ended the DTLS session\n")


@pytest.mark.parametrize("command", ["send", "bench"])
def test_help_has_the_options(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    shown = capsys.readouterr().out
    assert all(option.flag in shown for option in CLIENT_DTLS)


def test_options_of_both_sides_have_the_same_names():
    server = {option.name for option in SERVER_DTLS}
    assert server <= {option.name for option in CLIENT_DTLS}
    assert set(SERVER_DTLS) == {option for option in OPTIONS if option.into == "dtls"}
