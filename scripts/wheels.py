"""Build the source distribution, and from it a wheel for each CPython.

Each wheel is built against an old C library, which zig provides, and audited. Those for this
machine are installed into an empty environment and used there. Files that pass remain
in the folder.

The same commit gives the same files, whatever folder it is in (``make reproducible``): the time is
the commit's, paths are replaced, and the source is unpacked to a fixed place.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
LARGEST = 4.5 * 2**20  # bytes

# The oldest C libraries that the wheels support, by the names that pip uses: musl, and glibc for
# each machine.
MUSL = "musllinux_1_2"
GLIBC = {"riscv64": "manylinux_2_31"}
OLDEST_GLIBC = "manylinux_2_17"

# Where the source is unpacked. The path is fixed because the list of components contains it.
SOURCE = Path("/tmp/tomada-source")  # noqa: S108 - it fails if the folder exists
# Some components that the list of each wheel must have.
COMPONENTS = {"pyo3", "openssl", "openssl-src"}
# By default, OpenSSL looks for its modules in the folder where it was built. That folder differs
# between builds, and somebody could place a module in it.
OPENSSL = "MODULESDIR=/usr/local/ssl/modules ENGINESDIR=/usr/local/ssl/engines"


def output(*command: object) -> str:
    """Run one of this machine's tools, and return its output."""
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.strip()


def replaced_paths() -> dict[str, str]:
    """Return the folders that exist only on this machine, and their replacements in the wheel."""
    cargo = os.environ.get("CARGO_HOME", Path.home() / ".cargo")
    # The source of the compiler's library is here if it is installed, otherwise at the second path.
    library = f"{output('rustc', '--print', 'sysroot')}/lib/rustlib/src/rust"
    commit = output("rustc", "--version", "--verbose").partition("commit-hash: ")[2].split()[0]
    return {str(cargo): "/cargo", str(SOURCE): "/tomada", library: f"/rustc/{commit}"}


def environment() -> dict[str, str]:
    """Return the environment of all commands."""
    # Variables such as PYTHONPATH would make packages outside the environment visible.
    found = {name: value for name, value in os.environ.items() if name[:6] != "PYTHON"}
    # maturin looks for zig in its own environment.
    found["PATH"] = f"{BIN}{os.pathsep}{found['PATH']}"
    found.setdefault("CARGO_TARGET_DIR", str(ROOT / "target"))
    found.setdefault("GNUMAKEFLAGS", OPENSSL)
    flags = [f"--remap-path-prefix={old}={new}" for old, new in replaced_paths().items()]
    found.setdefault("CARGO_ENCODED_RUSTFLAGS", "\x1f".join(flags))
    if "SOURCE_DATE_EPOCH" not in found:
        found["SOURCE_DATE_EPOCH"] = output("git", "log", "-1", "--format=%ct")
    return found


ENVIRONMENT = environment()


def run(*command: object, cwd: Path | None = None) -> str:
    """Run a command and return its output; exit with a message if it fails."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=ENVIRONMENT, cwd=cwd
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def interpreters() -> dict[str, str]:
    """Return the interpreters by version."""
    lines = run(sys.executable, ROOT / "scripts" / "toolchain.py", "list").splitlines()
    return dict(line.split(None, 1) for line in lines)


def oldest_library(target: str) -> str:
    """Return the oldest C library that wheels for a target support."""
    return MUSL if "musl" in target else GLIBC.get(target.partition("-")[0][:7], OLDEST_GLIBC)


@contextmanager
def unpacked(source: Path) -> Iterator[Path]:
    """Unpack the source distribution to its fixed place."""
    try:
        SOURCE.mkdir(mode=0o700)
    except FileExistsError:
        sys.exit(f"{SOURCE} exists: another build is running, or was killed; remove the folder")
    try:
        with tarfile.open(source) as archive:
            archive.extractall(SOURCE, filter="data")
        (folder,) = SOURCE.iterdir()
        yield folder
    finally:
        shutil.rmtree(SOURCE)


def build(folder: Path, pythons: list[str], target: str | None) -> None:
    run(BIN / "maturin", "sdist", "--out", folder, cwd=ROOT)
    # Other machines do not have this machine's OpenSSL.
    command = [BIN / "maturin", "build", "--release", "--zig", "--features", "vendored"]
    command += ["--locked", "--out", folder]
    command += ["--compatibility", oldest_library(target or os.uname().machine)]
    command += ["--target", target] if target else []
    command += [part for python in pythons for part in ("--interpreter", python)]
    (source,) = folder.glob("*.tar.gz")
    with unpacked(source) as inside:
        run(*command, cwd=inside)


def audit(wheel: Path, oldest: str) -> None:
    """Check that the wheel supports what its name promises, lists its components, and is small."""
    shown = run(sys.executable, "-m", "auditwheel", "show", wheel)
    found = re.search(r'platform tag:\s+"(\w+)"', shown)
    needed = set(re.findall(r'^ *"(\S+)": ', shown, re.MULTILINE))
    # zig calls musl's library libc.so, and auditwheel expects Alpine's name for it. musl's loader
    # takes either for itself.
    is_musl = oldest == MUSL and needed == {"libc.so"}
    if found is None or not (found[1].startswith(oldest) or is_musl):
        sys.exit(shown)
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if "/sboms/" in name]
        components = {each["name"] for each in json.loads(archive.read(name))["components"]}
    if not components >= COMPONENTS:
        sys.exit(f"{wheel.name}: {name} does not list {COMPONENTS - components}")
    size = wheel.stat().st_size
    print(f"{wheel.name}: {size / 2**20:.2f} MiB, {oldest if is_musl else found[1]}", flush=True)
    if size > LARGEST:
        sys.exit(f"it has more than {LARGEST / 2**20} MiB")


def try_out(wheel: Path, python: str) -> None:
    """Install the wheel into an empty environment, and use it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(python, "-m", "venv", folder)
        inside = folder / "bin" / "python"
        run(inside, "-m", "pip", "install", "--quiet", "--no-index", wheel)
        smoke = ROOT / "tests" / "smoke.py"
        print("   ", run(inside, "-I", "-W", "error", smoke, cwd=folder).strip(), flush=True)
        run(folder / "bin" / "tomada", "--version", cwd=folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", help="another machine or C library, as rustc calls it")
    parser.add_argument(
        "--python", nargs="+", help="versions such as 3.14t (default: those that are installed)"
    )
    given = parser.parse_args()
    installed = interpreters()
    versions = given.python or list(installed)
    # For another machine, maturin knows the interpreters by version.
    pythons = [installed[each] if given.target is None else f"python{each}" for each in versions]
    given.folder.mkdir(exist_ok=True, parents=True)
    with tempfile.TemporaryDirectory() as name:
        built = Path(name)
        print("building for", ", ".join(versions), flush=True)
        build(built, pythons, given.target)
        for version, python in zip(versions, pythons, strict=True):
            # python3.14t has the tags cp314-cp314t.
            tag = f"cp{version.replace('.', '')}"
            (wheel,) = built.glob(f"tomada-*-{tag.removesuffix('t')}-{tag}-*.whl")
            audit(wheel, oldest_library(given.target or os.uname().machine))
            if given.target is None:
                try_out(wheel, python)
        run(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir())
        for path in sorted(built.iterdir()):
            shutil.copy(path, given.folder)
        (source,) = built.glob("*.tar.gz")
        print(f"{source.name}: {source.stat().st_size / 2**10:.0f} KiB")


if __name__ == "__main__":
    main()
