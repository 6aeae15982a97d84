"""Run the tests of libraries that use datagram endpoints, on the standard loop and on tomada's.

``python run.py FOLDER`` downloads the source distributions of the installed versions to the folder,
and unpacks only their tests.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

# The folder of the tests in each distribution, and the file to run.
SUITES = {"aioquic": "tests/test_asyncio.py", "asyncio-dgram": "test/test_aio.py"}

TESTS = Path(__file__).parents[1]


def fetch(name: str, folder: Path) -> Path:
    """Download a library's tests, and return their folder."""
    requirement = f"{name}=={importlib.metadata.version(name)}"
    target = folder / requirement
    if target.exists():
        return target
    sources = folder / "sources"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run([*command, "--no-binary", name, "--dest", sources, requirement], check=True)
    (archive,) = sources.glob(f"{name.replace('-', '_')}-*.tar.gz")
    wanted = Path(SUITES[name]).parent.name
    with tarfile.open(archive) as tar:
        for member in tar:
            # Without the distribution's top folder, and without its package, which is installed.
            member.name = member.name.partition("/")[2]
            if member.name.startswith(wanted + "/"):
                tar.extract(member, target, filter="data")
    archive.unlink()
    return target


def outcomes(variant: str, name: str, folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Run a suite; return the classes that it used, and the outcome of each test."""
    log = folder / f"{variant}.jsonl"
    log.unlink(missing_ok=True)
    path = os.pathsep.join([str(TESTS / "peers"), str(TESTS / "cpython")])
    options = ["-p", "outcomes", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", "."]
    options += ["-o", "asyncio_default_fixture_loop_scope=function", "--timeout", "60"]
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *options, SUITES[name]],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "OUTCOMES": log.name, "VARIANT": variant},
        stdout=subprocess.DEVNULL,
        check=False,
    )
    classes, *tests = map(json.loads, log.read_text().splitlines())
    for test in tests:
        if test["outcome"] == "failed":
            print(f"{name}, {variant}: {test['test']}\n{test['why']}\n")
    # A test that passes and then fails to clean up has two lines; the last one counts.
    return classes, {test["test"]: test["outcome"] for test in tests}


def main(folder: Path) -> int:
    status = 0
    for name in SUITES:
        tests = fetch(name, folder)
        for variant in ("stock", "loop"):
            classes, found = outcomes(variant, name, tests)
            passed = {test for test, outcome in found.items() if outcome == "passed"}
            if variant == "stock":
                stock = passed
            print(f"{name}: {len(passed)} of {len(found)} pass with {classes['transport']}")
        if not stock or stock - passed:
            print(f"{name}: with tomada's loop alone these do not pass: {sorted(stock - passed)}")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute()))
