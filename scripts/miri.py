"""Runs the Rust unit tests under Miri, each in its own process.

Miri supports neither datagram sockets nor most of Linux's system calls, and aborts at the first
unsupported one. A test that makes such a call is counted and skipped.

``python miri.py cargo +nightly miri test …``: the arguments are the command that runs the tests.
"""

import concurrent.futures
import os
import signal
import subprocess
import sys

UNSUPPORTED = "unsupported operation"
# The time limit of a test under Miri, in seconds. A test that exceeds it does not count as failed.
LONGEST = 300


def listed(command):
    output = subprocess.run(
        [*command, "--", "--list", "--format", "terse"], stdout=subprocess.PIPE, text=True
    )
    if output.returncode:
        sys.exit(output.returncode)
    return [
        line[: -len(": test")] for line in output.stdout.splitlines() if line.endswith(": test")
    ]


def outcome(command, name):
    """Run a test; return its outcome and its output."""
    # In a group of its own: cargo's child is what takes long.
    started = subprocess.Popen(
        [*command, "--", "--exact", name],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = started.communicate(timeout=LONGEST)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        started.communicate()
        return "took too long", ""
    if started.returncode == 0:
        return ("ignored" if "1 ignored" in output else "passed"), ""
    return ("unsupported" if UNSUPPORTED in output else "failed"), output


def main(command):
    names = listed(command)
    counts = {}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = {name: pool.submit(outcome, command, name) for name in names}
        for name, run in runs.items():
            what, output = run.result()
            counts[what] = counts.get(what, 0) + 1
            if what == "failed":
                print("== %s\n%s" % (name, output), flush=True)
    print("Miri:", ", ".join("%d %s" % (count, what) for what, count in sorted(counts.items())))
    return 1 if "failed" in counts or not counts.get("passed") else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
