"""The build backend for pip: maturin's, with DTLS as this machine can have it.

It uses the system's OpenSSL if pkg-config finds one that is recent enough. Otherwise it compiles
one, which takes minutes. ``TOMADA_DTLS=no`` builds without DTLS. The Makefile decides the same.
"""

import os
import subprocess

from maturin import *  # noqa: F403
from maturin import build_editable as _build_editable
from maturin import build_wheel as _build_wheel

OLDEST = "3.0"


def features():
    if os.environ.get("TOMADA_DTLS") == "no":
        return "--no-default-features --features python"
    probe = ["pkg-config", "--atleast-version=" + OLDEST, "openssl"]
    try:
        is_recent = subprocess.run(probe, stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        is_recent = False
    if is_recent:
        return ""
    print(
        "compiling OpenSSL, which takes about three minutes: install OpenSSL 3 with its headers "
        "and pkg-config to avoid that, or set TOMADA_DTLS=no to build without DTLS",
        flush=True,
    )
    return "--features vendored"


def add_features():
    arguments = os.environ.get("MATURIN_PEP517_ARGS", "")
    if "--features" not in arguments and "-F" not in arguments:
        os.environ["MATURIN_PEP517_ARGS"] = (arguments + " " + features()).strip()


def build_wheel(*args, **kwargs):
    add_features()
    return _build_wheel(*args, **kwargs)


def build_editable(*args, **kwargs):
    add_features()
    return _build_editable(*args, **kwargs)
