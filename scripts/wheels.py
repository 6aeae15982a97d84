"""Build the source distribution, and from it a wheel for each installed CPython.

Each wheel is built against an old C library, which zig provides, and audited. Those for this
machine are installed into an empty environment and used there. Files that pass remain
in the folder.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

SCRIPTS = Path(__file__).parent
SMOKE = SCRIPTS.parent / "tests" / "smoke.py"
BIN = Path(sys.executable).parent
LARGEST = 1.5 * 2**20  # bytes

# The oldest C libraries that the wheels support, by the names that pip uses.
OLDEST = {"gnu": "manylinux_2_17", "musl": "musllinux_1_2"}


def run(*command: object, cwd: Path | None = None) -> str:
    """Run a command and return its output; exit with a message if it fails."""
    # Variables like PYTHONPATH would make packages outside the environment visible.
    environment = {name: value for name, value in os.environ.items() if name[:6] != "PYTHON"}
    # maturin looks for zig in its own environment.
    environment["PATH"] = f"{BIN}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=environment, cwd=cwd
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def interpreters() -> dict[str, str]:
    """Return the interpreters by version."""
    lines = run(sys.executable, SCRIPTS / "toolchain.py", "list").splitlines()
    return dict(line.split(None, 1) for line in lines)


def build(folder: Path, pythons: list[str], oldest: str, target: str | None) -> None:
    command = [BIN / "maturin", "build", "--release", "--sdist", "--zig", "--out", folder]
    # The OpenSSL of this machine is not there on others.
    command += ["--features", "vendored"]
    command += ["--target", target] if target else []
    command += [part for python in pythons for part in ("--interpreter", python)]
    run(*command, "--compatibility", oldest)


def audit(wheel: Path, oldest: str) -> None:
    """Check that the wheel supports what its name promises, and is small."""
    shown = run(sys.executable, "-m", "auditwheel", "show", wheel)
    found = re.search(r'platform tag:\s+"(\w+)"', shown)
    if found is None or not found[1].startswith(oldest):
        sys.exit(shown)
    size = wheel.stat().st_size
    print(f"{wheel.name}: {size / 2**20:.2f} MiB, {found[1]}", flush=True)
    if size > LARGEST:
        sys.exit(f"it has more than {LARGEST / 2**20} MiB")


def try_out(wheel: Path, python: str) -> None:
    """Install the wheel into an empty environment, and use it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(python, "-m", "venv", folder)
        inside = folder / "bin" / "python"
        run(inside, "-m", "pip", "install", "--quiet", "--no-index", wheel)
        print("   ", run(inside, "-I", "-W", "error", SMOKE, cwd=folder).strip(), flush=True)
        run(folder / "bin" / "tomada", "--version", cwd=folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", help="another machine or C library, as rustc calls it")
    given = parser.parse_args()
    oldest = OLDEST["musl" if given.target and "musl" in given.target else "gnu"]
    given.folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        built = Path(name)
        pythons = interpreters()
        print("building for", ", ".join(pythons), flush=True)
        build(built, list(pythons.values()), oldest, given.target)
        for version, python in pythons.items():
            # python3.14t has the tags cp314-cp314t.
            tag = f"cp{version.replace('.', '')}"
            (wheel,) = built.glob(f"tomada-*-{tag.removesuffix('t')}-{tag}-*.whl")
            audit(wheel, oldest)
            if given.target is None:
                try_out(wheel, python)
        run(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir())
        for path in built.iterdir():
            (given.folder / path.name).write_bytes(path.read_bytes())
        (source,) = built.glob("*.tar.gz")
        print(f"{source.name}: {source.stat().st_size / 2**10:.0f} KiB")


if __name__ == "__main__":
    main()
