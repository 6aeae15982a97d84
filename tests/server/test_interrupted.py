"""Signals at every line of start, stop and serve_forever leave no process and no port."""

import pytest

from families import LONG
from support import HELPERS, Child

PROGRAM = HELPERS / "interrupting.py"
OPERATIONS = ("start", "stop", "serve")

pytestmark = [
    pytest.mark.usefixtures("interruptible"),
    pytest.mark.thread_unsafe(reason="it runs programs"),
]


def rounds(*arguments):
    with Child(PROGRAM, *arguments) as child:
        status, output, errors = child.end(6000 if LONG else 600)
    assert status == 0, errors
    return int(output)


@pytest.mark.parametrize("action", ["raise", "interrupt", "stop"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_interruption_at_every_line_leaves_nothing_behind(operation, action):
    assert rounds(operation, 1, action, 1, 1) > 10


@pytest.mark.parametrize("action", ["raise", "interrupt", "stop"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_interruption_at_every_line_leaves_no_worker(operation, action):
    # Each line starts processes, so the short form tries only a sample of the lines.
    step = 1 if LONG else 7
    first = 1 + ("raise", "interrupt", "stop").index(action)
    assert rounds(operation, 2, action, first, step) > 3


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_several_exceptions_of_a_signal_handler_leave_nothing_behind(operation, workers):
    step = 1 if LONG else 2 if workers == 1 else 40
    assert rounds(operation, workers, "storm", 1, step) > 1
