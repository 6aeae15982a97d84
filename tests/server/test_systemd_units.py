"""A service and its socket, started, reloaded and watched by a systemd of their own."""

import re
import sys
from pathlib import Path

import pytest

import skips
from serving import ask
from support import eventually
from systemd_machine import Machine, shown

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")

PAGE = Path(__file__).parents[2] / "docs/how-to/production.md"
ADDRESS = "127.0.0.1", 1234
# A service has a /tmp of its own, which may be where this interpreter is.
SHOWN = f"BindReadOnlyPaths={' '.join(map(str, shown()))}"


@pytest.fixture
def machine(network, tmp_path):
    for program in ("unshare", "nsenter", "systemctl", "systemd-run"):
        skips.program(program)
    with Machine(network.namespace(), tmp_path) as machine:
        yield machine


@pytest.fixture
def service(machine):
    """Install the service of the how-to, as it says."""
    pytest.importorskip("prometheus_client")
    blocks = re.findall(r'```\w+ title="(\S+)"\n(.*?)```', PAGE.read_text(), re.DOTALL)
    files = dict(blocks)
    folder = machine.shout
    (folder / "venv/bin").mkdir(parents=True)
    (folder / "shout.py").write_text(files["shout.py"])
    without_address = re.sub(r"(?m)^address = .*\n", "", files["shout.toml"])
    assert without_address != files["shout.toml"]
    (folder / "shout.toml").write_text(without_address)
    tomada = folder / "venv/bin/tomada"
    path = ":".join(filter(None, sys.path))
    tomada.write_text(f'#!/bin/sh\nPYTHONPATH="{path}" exec {sys.executable} -m tomada "$@"\n')
    tomada.chmod(0o755)
    for name in ("shout.service", "shout.socket"):
        (machine.units / name).write_text(files[name])
    drop_in(machine, "interpreter", SHOWN)
    machine.command("systemctl", "start", "shout.socket")
    return machine


def drop_in(machine, name, line):
    """Add an option to the service."""
    folder = machine.units / "shout.service.d"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.conf").write_text(f"[Service]\n{line}\n")
    machine.command("systemctl", "daemon-reload")


def shouted(machine, text=b"hello"):
    return machine.run(ask, ADDRESS, text)


def start(machine):
    """Start the service by its first datagram, and wait until systemd knows that it is ready."""
    assert shouted(machine) == b"HELLO"
    eventually(lambda: machine.show("shout.service", "ActiveState") == "active")


def test_systemd_starts_reloads_and_stops_the_service_of_the_how_to(service):
    assert service.show("shout.service", "ActiveState") == "inactive"
    start(service)
    status = eventually(lambda: service.show("shout.service", "StatusText"))
    assert status.startswith("serving 127.0.0.1:1234")
    main = service.show("shout.service", "MainPID")

    program = service.shout / "shout.py"
    program.write_text(program.read_text().replace("data.upper()", "b'reloaded'"))
    service.command("systemctl", "reload", "shout")
    eventually(lambda: shouted(service) == b"reloaded")
    eventually(lambda: service.show("shout.service", "SubState") == "running")
    assert service.show("shout.service", "MainPID") == main

    service.command("systemctl", "stop", "shout.service")
    assert service.show("shout.service", "Result") == "success"
    assert service.show("shout.service", "ExecMainStatus") == "0"
    assert service.show("shout.service", "NRestarts") == "0"
    # A datagram that arrives while it is down waits, and starts it again.
    assert shouted(service) == b"reloaded"
    assert service.show("shout.service", "MainPID") != main


def test_systemd_restarts_a_service_that_hangs(service):
    drop_in(service, "watchdog", "WatchdogSec=2")
    start(service)
    main = service.show("shout.service", "MainPID")
    service.command("kill", "-STOP", main)
    eventually(lambda: service.show("shout.service", "NRestarts") != "0")
    assert shouted(service) == b"HELLO"
    assert service.show("shout.service", "MainPID") != main


def test_systemd_run_waits_until_the_service_is_ready(machine):
    path = ":".join(filter(None, sys.path))
    machine.command(
        *("systemd-run", "--unit=echo", f"--setenv=PYTHONPATH={path}"),
        *("--property=Type=notify", "--property=WatchdogSec=60", "--property=DynamicUser=yes"),
        f"--property={SHOWN}",
        *(sys.executable, "-m", "tomada", "serve", "{}:{}".format(*ADDRESS)),
    )
    assert machine.show("echo", "ActiveState") == "active"
    assert machine.run(ask, ADDRESS) == b"ping"
    machine.command("systemctl", "stop", "echo")
    assert machine.show("echo", "ActiveState") == "inactive", "or it would be failed"


def test_systemd_run_hears_that_a_service_cannot_start(machine):
    machine.units.joinpath("wrong.service").write_text(
        f"[Service]\nType=notify\nExecStart={sys.executable} -m tomada serve 127.0.0.1:port\n"
    )
    machine.command("systemctl", "daemon-reload")
    with pytest.raises(AssertionError, match=r"wrong\.service"):
        machine.command("systemctl", "start", "wrong")
    assert machine.show("wrong", "ActiveState") == "failed"
