"""``tomada info``: what it reports about this machine, and its advice for others."""

import json
import platform
import resource
from pathlib import Path

import pytest

import tomada
from command import run
from tomada import _devices, cli
from tomada._cli import info

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")


def test_info_reports_this_machines_versions_and_limits():
    status, output, errors = run("info", "--json")
    found = json.loads(output)
    assert (status, errors) == (0, "")
    assert found["versions"]["tomada"] == tomada.__version__
    assert platform.python_version() in found["versions"]["python"]
    assert platform.release() in found["versions"]["kernel"]
    for name in ("net.core.rmem_max", "net.core.wmem_max", "net.core.somaxconn"):
        path = Path("/proc/sys", *name.split("."))
        assert found["limits"][name] == (int(path.read_text()) if path.exists() else None)
    assert (
        found["limits"]["open files (ulimit -n)"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    )


def test_info_is_readable_text(capsys):
    assert cli.main(["info"]) == 0
    output = capsys.readouterr().out
    for title in ("versions:", "features:", "limits:", "devices:"):
        assert f"\n{title}\n" in f"\n{output}"
    assert f"  tomada                   {tomada.__version__}\n" in output
    assert "net.core.rmem_max" in output


def test_info_detects_features_by_trying_them(monkeypatch):
    names = list(info.features())
    assert all(isinstance(there, bool) for there in info.features().values())

    def refuse(*_arguments, **_options):
        raise OSError

    monkeypatch.setattr(tomada.socket, "socket", refuse)
    assert info.features() == dict.fromkeys(names, False)


def test_info_reports_no_gso_if_the_kernel_does_not_split(monkeypatch):
    monkeypatch.setattr(tomada.socket, "UDP_SEGMENT", 1)  # UDP_CORK is not a control message
    assert not info.works(info.segments)


def test_info_describes_devices(monkeypatch):
    lo = info.devices()["lo"]
    assert lo.startswith("noqueue; no pacing, no transmit times (no fq); software timestamps (")
    nic = _devices.Timestamping(
        transmit_software=True,
        transmit_hardware=True,
        receive_software=True,
        receive_hardware=False,
        clock=2,
    )
    monkeypatch.setattr(_devices, "timestamping", lambda _: nic)
    assert info.device("eth0", ["mq", "fq", "fq"]) == (
        "mq/fq; pacing and transmit times; software timestamps (transmit, receive); "
        "hardware timestamps (transmit); clock /dev/ptp2"
    )
    assert "no pacing" in info.device("eth0", ["mq", "fq", "fq_codel"])
    assert "no queueing discipline; no pacing" in info.device("eth0", [])


def test_info_describes_no_devices_if_it_may_not_ask(monkeypatch):
    def refuse():
        raise PermissionError

    monkeypatch.setattr(_devices, "queueing_disciplines", refuse)
    assert info.devices() == {}


GOOD = {
    "versions": {"rich": "14"},
    "features": {"GSO": True},
    "limits": {"net.core.rmem_max": 8 << 20, "open files (ulimit -n)": 65_536},
}


@pytest.mark.parametrize(
    ("section", "changed", "advice"),
    [
        ("limits", {"net.core.rmem_max": 212_992}, "about 554 small datagrams"),
        ("limits", {"net.core.rmem_max": 212_992}, "sudo sysctl -w net.core.rmem_max=8388608"),
        (
            "limits",
            {"open files (ulimit -n)": 1024},
            "may open 1,024 sockets. To allow more: ulimit",
        ),
        ("features", {"GSO": False}, "Not available here, so tomada works without: GSO."),
        ("versions", {"rich": None}, "pip install 'tomada[cli]'"),
    ],
)
def test_info_gives_advice_for_each_problem(section, changed, advice):
    found = {**GOOD, section: {**GOOD[section], **changed}}
    (line,) = info.recommendations(found)
    assert advice in line


def test_info_gives_no_advice_without_problems():
    assert info.recommendations(GOOD) == []
    unknown = {**GOOD, "limits": {**GOOD["limits"], "net.core.rmem_max": None}}
    assert info.recommendations(unknown) == []
    endless = {
        **GOOD,
        "limits": {**GOOD["limits"], "open files (ulimit -n)": resource.RLIM_INFINITY},
    }
    assert info.recommendations(endless) == []
