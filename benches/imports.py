"""Print how long imports take, and how much they add to ``import socket``: ``make bench-import``.

Each statement runs in a new interpreter, in turns with the others. The figures are medians of CPU
time, which other programs on the machine hardly change.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

ROUNDS = 21

STATEMENTS = (
    "import socket",
    "import tomada",
    "from tomada import socket",
    "from tomada import Client",
    "from tomada import Server",
    "import tomada.dtls",
    "import asyncio",
    "import tomada.asyncio",
)

PROGRAM = """
from time import process_time as now
start = now()
import socket
middle = now()
{}
print(middle - start, now() - middle)
"""


def measure(statement: str) -> list[float]:
    """Return the seconds that ``import socket`` takes, and the statement after it."""
    command = [sys.executable, "-I", "-c", PROGRAM.format(statement)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def main() -> None:
    rounds = [[measure(statement) for statement in STATEMENTS] for _ in range(ROUNDS)]
    first = statistics.median(socket for row in rounds for socket, _ in row)
    print(f"{STATEMENTS[0]:26} {first * 1e3:6.1f} ms")
    for statement, column in list(zip(STATEMENTS, zip(*rounds, strict=True), strict=True))[1:]:
        added = statistics.median(after for _, after in column)
        print(f"{statement:26} {added * 1e3:+6.1f} ms")


if __name__ == "__main__":
    main()
