"""Find this machine's tools for the Makefile. Runs on any Python 3.

check   fail with an explanation if Rust, a linker or a recent Python is missing
check-freethreaded
        fail with an explanation if this interpreter has a global lock
extras  print the requirements of tomada's extras
id      print an identifier of this interpreter
list    print a tag and a path for each installed CPython since 3.11
"""

import glob
import os
import re
import shutil
import subprocess
import sys
import sysconfig

OLDEST = (3, 11)


def check():
    if sys.version_info < OLDEST:
        found = "%d.%d" % sys.version_info[:2]
        sys.exit(
            "tomada needs Python 3.11 or newer, and %s is %s: "
            "install one and say make PYTHON=python3.11" % (sys.executable, found)
        )
    if not sys.platform.startswith("linux"):
        sys.exit("tomada needs Linux: it is built on system calls that only Linux has")
    if not shutil.which("cargo"):
        sys.exit("tomada is built with Rust, and there is no cargo: install Rust 1.88 or newer")
    if not (shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")):
        sys.exit("Rust needs a C linker, and there is no cc here: install gcc")
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        sys.exit(
            "%s cannot make environments: install its venv package (python3-venv)" % sys.executable
        )


def check_freethreaded():
    if not abi_flags():
        sys.exit(
            "%s has a global lock, and is none to test without it: "
            "install a free-threaded CPython and say make test-freethreaded PYTHON=python3.14t"
            % sys.executable
        )


def extras():
    import tomllib

    with open(os.path.join(os.path.dirname(__file__), "..", "pyproject.toml"), "rb") as file:
        optional = tomllib.load(file)["project"]["optional-dependencies"]
    needed = {line for lines in optional.values() for line in lines}
    print("\n".join(sorted(line for line in needed if not line.startswith("tomada["))))


def identity():
    print(sys.implementation.cache_tag, abi_flags(), sys.base_prefix)


def abi_flags():
    return "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""


PROBE = """
import sys, sysconfig
if sys.implementation.name == "cpython" and sys.version_info >= (3, 11):
    import venv, ensurepip, test.test_socket
    flags = "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
    tag = "%d.%d%s" % (*sys.version_info[:2], flags)
    print(tag, getattr(sys, "_base_executable", sys.executable))
"""


def interpreters():
    """Find, for each version, one CPython that can create environments and includes its tests."""
    candidates = [
        path
        for folder in os.environ.get("PATH", "").split(os.pathsep)
        for path in sorted(glob.glob(os.path.join(folder, "python3*")))
    ]
    if shutil.which("pyenv"):
        root = subprocess.run(["pyenv", "root"], stdout=subprocess.PIPE, text=True, check=True)
        candidates += sorted(glob.glob(root.stdout.strip() + "/versions/*/bin/python3"))
    found = {}
    for path in candidates:
        if not re.search(r"/python3(\.\d+t?)?$", path):
            continue
        probe = subprocess.run(
            [path, "-c", PROBE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        if probe.stdout:
            tag, executable = probe.stdout.split(None, 1)
            found.setdefault(tag, executable.strip())
    for tag, executable in sorted(found.items()):
        print(tag, executable)


if __name__ == "__main__":
    {
        "check": check,
        "check-freethreaded": check_freethreaded,
        "extras": extras,
        "id": identity,
        "list": interpreters,
    }[sys.argv[1]]()
