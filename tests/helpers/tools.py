"""The programs that the tests use, and their packages on Debian and Ubuntu.

``python tests/tools.py`` installs missing ones (``make test-tools``). If that fails, it says what
to install and still succeeds, so a broken mirror does not block anything.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

# The package that contains each program.
PACKAGES = {
    "cc": "gcc",
    "coap-client-gnutls": "libcoap3-bin",
    "coap-client-openssl": "libcoap3-bin",
    "coap-server-gnutls": "libcoap3-bin",
    "coap-server-openssl": "libcoap3-bin",
    "curl": "curl",
    "dig": "bind9-dnsutils",
    "dnsdist": "dnsdist",
    "dnsperf": "dnsperf",
    "ethtool": "ethtool",
    "gnutls-cli": "gnutls-bin",
    "gnutls-serv": "gnutls-bin",
    "go-mmproxy": "go-mmproxy",
    "ip": "iproute2",
    "logger": "bsdutils",
    "nc": "netcat-openbsd",
    "ncat": "ncat",
    "nats-server": "nats-server",
    "nft": "nftables",
    "nsenter": "util-linux",
    "nginx": "libnginx-mod-stream",
    "openssl": "openssl",
    "socat": "socat",
    "systemctl": "systemd",
    "systemd-analyze": "systemd",
    "systemd-run": "systemd",
    "systemd-socket-activate": "systemd",
    "tc": "iproute2",
    "tshark": "tshark",
    "unshare": "util-linux",
}

ATTEMPTS = 3
PAUSE = 10
# The total time limit in seconds, in case a mirror hangs.
LONGEST = 600

INSTALL = [
    *("apt-get", "install", "--yes", "--quiet", "--no-install-recommends"),
    *("-o", "Acquire::Retries=3", "-o", "Acquire::http::Timeout=30"),
    *("-o", "DPkg::Lock::Timeout=60"),
]


def find(program):
    """Return the path of a program, or ``None``."""
    # A user's PATH may lack the directories of system administration programs.
    return shutil.which(program, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")


def missing():
    return [program for program in PACKAGES if find(program) is None]


def packages_of(programs):
    return sorted({PACKAGES[program] for program in programs})


def run(command, end):
    """Run an installation command with a time limit; return whether it succeeded."""
    left = end - time.monotonic()
    if left <= 0:
        return False
    # Otherwise tshark's package asks who may capture.
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    if os.geteuid() != 0:
        command = ["sudo", "--non-interactive", "--preserve-env=DEBIAN_FRONTEND", *command]
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, timeout=left, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        print(error, file=sys.stderr)
        return False
    return done.returncode == 0


def again_and_again(command, end):
    """Run a command until it succeeds, at most a few times; return whether it did."""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE * attempt)
        if run(command, end):
            return True
    return False


def may_install():
    if os.geteuid() == 0:
        return True
    sudo = ["sudo", "--non-interactive", "true"]
    return shutil.which("sudo") is not None and subprocess.run(sudo, check=False).returncode == 0


def main():
    lacking = missing()
    if not lacking:
        print("every program that the tests use is installed")
        return
    if shutil.which("apt-get") is None:
        print("this is neither Debian nor Ubuntu; the tests also use:", *lacking)
        return
    packages = packages_of(lacking)
    if not may_install():
        print("run this as root:", *INSTALL[:2], *packages)
        return
    end = time.monotonic() + LONGEST
    again_and_again(["apt-get", "update", "--quiet"], end)
    if not again_and_again([*INSTALL, *packages], end):
        # A package that is not available must not prevent the others from being installed.
        for package in packages:
            run([*INSTALL, package], end)
    if lacking := missing():
        print("could not install:", *packages_of(lacking))
        print("tests are skipped that use:", *lacking)
    else:
        print("installed:", *packages)


if __name__ == "__main__":
    main()
