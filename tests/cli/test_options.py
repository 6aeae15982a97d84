"""The options of ``tomada serve``: one table, and four things that are made from it."""

import importlib.util
import inspect
import json
import os
import signal
import socket as std
from pathlib import Path

import pytest

import tomada
from command import Serving, run
from serving import ask
from support import Child
from tomada import cli
from tomada._cli.options import BY_NAME, OPTIONS
from tomada._config import ConfigError, misspelled, resolve

ROOT = Path(__file__).parents[2]
HELP = Path(__file__).with_name("serve_help.txt")

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")

# Parameters of Server that have no option of their own, and why.
UNREACHABLE = {
    "handler": "app, echo, discard and print",
    "guard": "the options of Guard",
    "dtls": "dtls-cert, dtls-key, dtls-ca and dtls-psk-file",
    "sock": "an object; fd is the same from outside",
}


def parameters(function):
    return inspect.signature(function).parameters


@pytest.mark.parametrize(("into", "function"), [("server", tomada.Server), ("guard", tomada.Guard)])
def test_every_parameter_has_an_option(into, function):
    reachable = {option.target for option in OPTIONS if option.into == into}
    unreachable = set(UNREACHABLE) if into == "server" else set()
    assert reachable | unreachable == set(parameters(function)) - {"self"}
    assert not reachable & unreachable


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_default_is_that_of_the_parameter(option):
    function = {"server": tomada.Server, "guard": tomada.Guard}.get(option.into)
    if function is None or (isinstance(option.default, str | None) and "|" not in option.usage):
        return  # the text describes what happens
    assert parameters(function)[option.target].default == option.default


def test_help(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    with pytest.raises(SystemExit):
        cli.main(["serve", "--help"])
    shown = capsys.readouterr().out
    if "TOMADA_WRITE_HELP" in os.environ:
        HELP.write_text(shown, encoding="utf-8")
    assert shown == HELP.read_text(encoding="utf-8"), "TOMADA_WRITE_HELP=1 accepts the difference"


def test_documentation_has_the_table():
    spec = importlib.util.spec_from_file_location("options", ROOT / "scripts" / "options.py")
    options = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(options)
    page = options.PAGE.read_text(encoding="utf-8")
    assert page == options.written(page), "run python scripts/options.py"


# A text for each kind of value, and the value.
SAMPLES = {
    "HOST:PORT": ("[::1]:99", ("::1", 99)),
    "N": ("17", 17),
    "S": ("2.5", 2.5),
    "R": ("100", 100.0),
    "X": ("3", 3.0),
    "BYTES": ("4M", 4 << 20),
    "NETWORK": ("192.0.2.0/24", "192.0.2.0/24"),
    "V4,V6": ("24,56", (24, 56)),
    "HOW": ("cpu", "cpu"),
    "URL": ("nats://127.0.0.1:4222?subject=s", "nats://127.0.0.1:4222?subject=s"),
    "": ("yes", True),
}


def sample(option):
    metavar = option.kind.metavar
    text = metavar.split("|")[-1] if "|" in metavar else "some:text"
    text, value = SAMPLES.get(metavar, (text, text))
    return text, [value] if option.kind.is_list else value


def on_command_line(option, text):
    if option.is_positional:
        words = [text]
    else:
        words = [option.flag] if option.kind.is_switch else [option.flag, text]
    return vars(cli.parser().parse_args(["serve", *words]))


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_each_source_sets_each_option(option, tmp_path):
    text, value = sample(option)
    assert resolve(OPTIONS, on_command_line(option, text), {}).get(option.name) == value
    assert resolve(OPTIONS, {}, {option.variable: text}).get(option.name) == value
    path = tmp_path / "options.toml"
    path.write_text(f"{option.name} = {json.dumps(text)}\n")
    if option.is_in_file:
        assert resolve(OPTIONS, {}, {}, str(path)).get(option.name) == value
    else:
        with pytest.raises(ConfigError, match=f"there is no option '{option.name}'"):
            resolve(OPTIONS, {}, {}, str(path))


def test_command_line_precedes_environment_and_that_the_file(tmp_path):
    path = tmp_path / "options.toml"
    path.write_text("workers = 2\ndrain = 2\nspin = 2\nrate = 2\n")
    settings = resolve(
        OPTIONS,
        {"workers": "4", "drain": None},
        {"TOMADA_WORKERS": "3", "TOMADA_DRAIN": "3", "TOMADA_RATE": ""},
        str(path),
    )
    assert [settings.get(name) for name in ("workers", "drain", "spin", "rate")] == [4, 3, 2, 2]
    assert [settings.source(name) for name in ("workers", "drain", "spin")] == [
        "--workers",
        "TOMADA_DRAIN",
        str(path),
    ]


TOML = """
allow = ["192.0.2.0/24", "2001:db8::/32"]
gro = false
drain = inf
rcvbuf = 65536
"""


def test_file_has_the_types_of_toml(tmp_path):
    path = tmp_path / "options.toml"
    path.write_text(TOML)
    settings = resolve(OPTIONS, {}, {}, str(path))
    assert settings.of(OPTIONS, "server") == {"gro": False, "drain": float("inf"), "rcvbuf": 65536}
    assert settings.of(OPTIONS, "guard") == {"allow": ["192.0.2.0/24", "2001:db8::/32"]}


def test_list_of_another_source_is_replaced():
    environment = {"TOMADA_ALLOW": "192.0.2.0/24, 198.51.100.0/24"}
    assert resolve(OPTIONS, {}, environment).get("allow") == ["192.0.2.0/24", "198.51.100.0/24"]
    given = {"allow": ["203.0.113.0/24"]}
    assert resolve(OPTIONS, given, environment).get("allow") == ["203.0.113.0/24"]


def test_highest_source_decides_between_options_that_exclude_each_other(tmp_path):
    path = tmp_path / "options.toml"
    path.write_text('app = "service:handle"\naddress = "127.0.0.1:1"\necho = false\n')
    settings = resolve(OPTIONS, {"fd": "3"}, {"TOMADA_DISCARD": "1"}, str(path))
    assert settings.get("app") is settings.get("address") is None
    assert (settings.get("discard"), settings.get("fd")) == (True, 3)
    with pytest.raises(ConfigError, match=r"set only one of discard and app \(TOMADA_DISC"):
        resolve(OPTIONS, {}, {"TOMADA_DISCARD": "1", "TOMADA_APP": "a:b"})


def test_misspelled_variables():
    environment = {"TOMADA_WOKERS": "2", "TOMADA_LONG": "1", "TOMADA_RATE": "2", "WORKERS": "3"}
    assert misspelled(OPTIONS, environment) == {"TOMADA_WOKERS": "TOMADA_WORKERS"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


WHOLE = "must be a whole number from 1 up, not"
WRONG = [
    ({}, ["--workers", "abc"], "", f"workers {WHOLE} 'abc' (--workers)"),
    ({}, ["--workers", "0"], "", f"workers {WHOLE} '0' (--workers)"),
    ({"TOMADA_WORKERS": "abc"}, [], "", f"workers {WHOLE} 'abc' (TOMADA_WORKERS)"),
    ({}, [], "workers = 1.5", f"workers {WHOLE} 1.5 (o.toml)"),
    ({}, [], "workers = true", f"workers {WHOLE} True (o.toml)"),
    ({}, [], "workers = [2]", f"workers {WHOLE} [2] (o.toml)"),
    (
        {"TOMADA_STEERING": "mood"},
        [],
        "",
        "steering must be hash, cpu, random or key:OFFSET,LENGTH, not 'mood' (TOMADA_STEERING)",
    ),
    (
        {},
        ["--gro", "--drain", "nan"],
        "",
        "drain must be a number of seconds, 0 or more (or inf), not 'nan' (--drain)",
    ),
    ({"TOMADA_GRO": "maybe"}, [], "", "gro must be true or false, not 'maybe' (TOMADA_GRO)"),
    (
        {"TOMADA_RCVBUF": "4 melons"},
        [],
        "",
        "rcvbuf must be a number of bytes, such as 4194304 or 4M, not '4 melons' (TOMADA_RCVBUF)",
    ),
    ({}, ["--rcvbuf", "8G"], "", "rcvbuf must be at most 2147483647 bytes, not 8589934592 (--rc"),
    ({}, [], 'allow = ["192.0.2.1/24"]', "allow: 192.0.2.1/24 has host bits set (o.toml)"),
    ({}, ["--burst", "5"], "", "burst needs a rate (--burst)"),
    (
        {"TOMADA_ADDRESS": "127.0.0.1:70000"},
        [],
        "",
        "address: '70000' is not a port: use a number from 0 to 65535 (TOMADA_ADDRESS)",
    ),
    (
        {},
        ["127.0.0.1"],
        "",
        "address: '127.0.0.1' has no port: write HOST:PORT, such as 127.0.0.1:1234 (HOST:PORT)",
    ),
    ({}, [], "max_size = 5", "there is no option 'max_size'; do you mean 'max-size'? (o.toml)"),
    ({}, [], "colour = 5", "there is no option 'colour' (o.toml)"),
    ({}, [], "bogus = 5", "there is no option 'bogus' (o.toml)"),
    ({}, [], "workers 2", "the configuration o.toml is not valid TOML: "),
    ({}, [], "workers = " + "1" * 5000, "the configuration o.toml is not valid TOML: "),
    ({}, [], "allow = " + "[" * 100_000, "the configuration o.toml is not valid TOML: "),
    ({}, [], "workers = \0", "the configuration o.toml is not valid TOML: "),
    ({}, ["--config", "none.toml"], None, "cannot read the configuration none.toml: No such file"),
    ({}, [], 'app = ""', "app must be a handler, as MODULE:HANDLER, not '' (o.toml)"),
    ({}, [], 'dtls-key = "a\\u0000"', "dtls-key must be a path, not 'a\\x00' (o.toml)"),
    (
        {},
        ["--max-size", "1" * 20],
        "",
        "max-size must be a number of bytes, such as 4194304 or 4M, ",
    ),
    (
        {},
        ["--burst", "4294967296", "--rate", "1"],
        "",
        "burst must be a whole number from 1 to 4294",
    ),
    ({"TOMADA_SOURCES": "1" * 20}, [], "", "sources must be a whole number from 8 up, not '111"),
    ({}, ["--takes", "batch"], "", "takes needs app (--takes)"),
    ({"TOMADA_FACTORY": "1"}, [], "", "factory needs app (TOMADA_FACTORY)"),
    ({"TOMADA_RELOAD": "1"}, [], "", "reload needs app (TOMADA_RELOAD)"),
    ({}, ["--sink", "mqtt://h"], "", "sink: 'mqtt://h' is not a sink: write nats://"),
    ({}, ["--sink", "nats://h"], "", "sink: 'nats://h' lacks its subject: add ?subject=… (--sink)"),
    ({"TOMADA_STEERING": "key:4"}, [], "", "steering must be hash, cpu, random or key:OFFSET"),
    ({}, ["--steering", "key:4,0"], "", "steering must be hash, cpu, random or key:OFFSET"),
    ({}, ["--sink", "nats://u:secret@h"], "", "sink: 'nats://h' lacks its subject: add ?subject="),
    (
        {},
        ["--max-requests", "5"],
        "",
        "max_requests replaces worker processes: pass workers=2 or more (--max-requests)",
    ),
    (
        {"TOMADA_PROXY_FLOWS": "5"},
        ["--workers", "2", "--steering", "cpu", "--proxy", "10.0.0.0/8"],
        "",
        "proxy_flows needs steering='hash': a flow's worker must not change (--steering, TOMADA_",
    ),
    ({}, ["--health", "./path"], "", "health must be HOST:PORT (--health)"),
    ({}, ["--dtls-key", "some.key"], "", "dtls-key needs dtls-cert (--dtls-key)"),
    ({"TOMADA_DTLS_CA": "ca.pem"}, [], "", "dtls-ca needs dtls-cert (TOMADA_DTLS_CA)"),
    ({}, ["--dtls-cert", "none.pem"], "", "dtls-cert: "),
    ({}, ["--dtls-psk-file", "none.psk"], "", "dtls-psk-file: "),
]


@pytest.mark.parametrize(("environment", "arguments", "toml", "line"), WRONG)
@pytest.mark.usefixtures("here")
def test_wrong_value_is_one_line_that_names_option_value_and_source(  # noqa: PLR0913, PLR0917
    environment, arguments, toml, line, monkeypatch, capsys
):
    Path("o.toml").write_text(toml or "")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if toml:
        monkeypatch.setenv("TOMADA_CONFIG", "o.toml")
    assert cli.main(["serve", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"tomada serve: {line}")
    assert shown.err.count("\n") == 1


SERVICE = """
import os

def log(word):
    with open(os.environ["LOG"], "a") as file:
        file.write(f"{word} {os.getpid()}\\n")

def begin():
    log("begin")

def end():
    log("end")

def upper(data, address):
    return data.upper()

def made():
    log("made")
    return lambda datagram: datagram.data[::-1]

def nothing():
    return 5

def broken():
    raise LookupError("no such table")
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "service.py").write_text(SERVICE)
    return tmp_path


def words(folder):
    return [line.split()[0] for line in (folder / "log").read_text().splitlines()]


@pytest.mark.parametrize("workers", [1, 2])
def test_server_is_configured_without_code(folder, workers):
    (folder / "service.toml").write_text(
        f'app = "service:made"\nfactory = true\nworkers = {workers}\ninit = "service:begin"\n'
        'app-dir = "code"\naddress = "127.0.0.1:1"\n'
    )
    environment = {
        **os.environ,
        "LOG": str(folder / "log"),
        "TOMADA_CONFIG": "service.toml",
        "TOMADA_EXIT": "service:end",
        "TOMADA_TAKES": "datagram",
        "TOMADA_MAX_SIZE": "5",
    }
    with Serving("127.0.0.1:0", cwd=folder, env=environment) as server:
        assert ask(server.address, b"abc") == b"cba"
        with pytest.raises(TimeoutError):
            ask(server.address, b"too long", timeout=0.1)
        server.signal(signal.SIGTERM)
        status, _, errors = server.end()
    assert status == 0
    assert ", 1 refused" in errors
    assert sorted(words(folder)) == sorted(["made", "begin", "end"] * workers)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["--app", "service:nothing", "--factory"],
            "app: service:nothing did not return a function, but int (--app)",
        ),
        (
            ["--app", "service:upper", "--factory"],
            "app: service:upper needs arguments, which a factory is called without (--app)",
        ),
        (
            ["--app", "service:upper", "--init", "service:nowhere"],
            "init: there is no 'nowhere' in service (--init)",
        ),
        (["--app", "other:upper"], "app: there is no module 'other' in code (--app)"),
    ],
)
def test_wrong_name_is_one_line(folder, arguments, complaint, workers):
    arguments = ["127.0.0.1:0", "--app-dir", "code", "--workers", workers, *arguments]
    status, _, errors = run("serve", *arguments, cwd=folder)
    assert status == 1
    assert errors == f"tomada serve: {complaint}\n"


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("arguments", [["--init", "service:broken"], ["--app", "service:broken"]])
def test_code_that_fails_at_the_start_prints_its_traceback_once(folder, arguments, workers):
    arguments = [*arguments, "--factory"] if arguments[0] == "--app" else arguments
    arguments = ["--app", "service:upper", *arguments]
    arguments = ["127.0.0.1:0", "--app-dir", "code", "--workers", workers, *arguments]
    status, _, errors = run("serve", *arguments, cwd=folder)
    assert status == 1
    assert errors.count("Traceback (most recent call last)") == 1
    assert errors.count('raise LookupError("no such table")') == 1
    assert errors.endswith("tomada serve: cannot start: LookupError: no such table\n")


# Becomes the server in the same process, as the children of systemd do.
PASSING = """
import os, sys
os.dup2({fd}, 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str({pid}))
os.execv(sys.executable, [sys.executable, "-m", "tomada", "serve", *sys.argv[1:]])
"""


def passing(sock, start, *arguments, pid="os.getpid()"):
    """Start a server as systemd does that passes a socket."""
    command = ("-c", PASSING.format(pid=pid, fd=sock.fileno()), *arguments)
    return start(command=command, pass_fds=(sock.fileno(),))


def test_sockets_that_systemd_passes_are_served_without_being_asked(inet):
    with inet.bound(std) as sock, passing(sock, Serving) as server:
        assert server.address == sock.getsockname()
        assert ask(server.address) == b"ping"


@pytest.mark.parametrize(
    ("pid", "warning"),
    [
        ("os.getpid()", "systemd passed, because of address (HOST:PORT)"),
        ("1", "ignoring LISTEN_FDS: LISTEN_PID is 1, not this process"),
    ],
)
def test_passed_sockets_that_are_not_used_are_logged(inet, pid, warning):
    def start(command, **options):
        return Child(*command, **options)

    with inet.bound(std) as sock, passing(sock, start, "127.0.0.1:0", pid=pid) as server:
        assert warning in server.error_line()
        assert "serving 127.0.0.1:" in server.error_line()


def test_descriptor_is_served(inet):
    with inet.bound(std) as sock:
        number = sock.fileno()
        with Serving("--fd", number, pass_fds=(number,)) as server:
            assert server.address == sock.getsockname()
            assert ask(server.address) == b"ping"


def test_names_are_unique_and_sections_are_in_one_piece():
    sections = [option.section for option in OPTIONS]
    assert sections == sorted(sections, key=list(dict.fromkeys(sections)).index)
    assert len(BY_NAME) == len(OPTIONS)
