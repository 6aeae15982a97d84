"""Runs a command many times while a core is busy, to find tests that fail once in fifty runs.

``python repeat.py TIMES COMMAND…``: the command runs pytest. All runs complete, and the failures of
each test are counted.
"""

import os
import re
import subprocess
import sys
import time
from collections import Counter

FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+(?: \S+)*?)(?: - .*)?$", re.MULTILINE)
BUSY = "while True: pass"


def main(times, command):
    failed, crashed = Counter(), 0
    busy = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        for number in range(1, times + 1):
            started = time.monotonic()
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            names = set(FAILED.findall(done.stdout))
            failed.update(names)
            if done.returncode:
                crashed += not names
                print(done.stdout)
            took = time.monotonic() - started
            print("run %d of %d: %d failed, %d s" % (number, times, len(names), took), flush=True)
    finally:
        busy.kill()
        busy.wait()
    for name, count in failed.most_common():
        print("%d of %d: %s" % (count, times, name))
    if crashed:
        print("%d of %d ended with an error and no failed test" % (crashed, times))
    return bool(failed or crashed)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
