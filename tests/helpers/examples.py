"""The programs in examples/."""

import importlib.util
import signal
import subprocess
from pathlib import Path

from support import DEADLINE

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name):
    """Import an example as a module."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, EXAMPLES / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def end(child):
    """Press Ctrl-C, and return the example's last output."""
    child.signal(signal.SIGINT)
    status, output, errors = child.end()
    assert not errors, errors
    assert status == 0
    return output


def run(*command, **options):
    """Run a program to its end, and return its output."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=DEADLINE, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
