"""Programs that use libraries from PyPI, on each event loop: ``python -m benches.applications``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from benches import suite
from benches.figures import Outcome, Result
from benches.loads import Operate, Window
from benches.plan import Scenario
from benches.report import digits, duration, facts, markdown
from benches.subjects import ours, peer

# Each library, what one operation is, and how many are under way at once.
PROGRAMS = {
    "aiocoap": ("a GET", 1),
    "rpcudp": ("a call", 1),
    "dnspython": ("a query, from an endpoint of its own", 1),
    "twisted": ("an exchange with an echo server", 1),
    "aioice": ("a datagram over a connection", 1),
    "aiortc": ("an exchange on a data channel", 1),
    "aioquic": ("an exchange on a new stream", 1),
    "pysnmp": ("a GET of one variable", 1),
}
LOOPS = ("asyncio", "uvloop", "rloop")
PAGE = Path("docs/benchmarks/programs.md")


def scenarios() -> list[Scenario]:
    return [
        Scenario(
            name,
            "programs",
            what,
            Operate(),
            (
                *(peer(loop, f"applications {name}", loop=loop, tasks=tasks) for loop in LOOPS),
                ours("asyncio", f"applications {name}", loop="tomada", tasks=tasks),
                ours("auto", f"applications {name}", loop="tomada-auto", tasks=tasks),
            ),
            reference="uvloop",
        )
        for name, (what, tasks) in PROGRAMS.items()
    ]


def table(results: list[Result], cell: Callable[[Outcome], str]) -> str:
    """Return a table with a row for each program and a column for each loop."""
    rows = [
        [
            f"{result.scenario.name}: {result.scenario.title}",
            *(
                cell(outcome) if outcome.samples else "failed"
                for outcome in result.outcomes.values()
            ),
        ]
        for result in results
    ]
    return markdown(["program", *results[0].outcomes], rows)


def notes(results: list[Result]) -> str:
    failures = [
        f"* {result.scenario.name} on {name} failed: {outcome.failure}"
        for result in results
        for name, outcome in result.outcomes.items()
        if outcome.failure is not None
    ]
    return "\n".join(failures) + "\n" if failures else ""


def page(results: list[Result]) -> str:
    """Return the page of results."""
    libraries = {name: suite.installed(name) for name in ("uvloop", "rloop", *PROGRAMS)}
    versions = {name: version for name, version in libraries.items() if version}
    first = results[0]
    return f"""\
# Programs

Libraries from PyPI, unchanged, each with its own client and server on one event loop in one thread.
`tomada: asyncio` is `tomada.asyncio.run(main())`, and `tomada: auto` is
`tomada.asyncio.run(main(), loop="auto")` with uvloop installed. Where a loop makes little
difference, most of the time is spent in the library's own Python code. To reproduce this page, run
`make bench-programs`.

## Operations per second

{table(results, lambda outcome: digits(outcome.median("rate")))}
## CPU time per operation

{table(results, lambda outcome: duration(outcome.median("cpu_ns")))}
{notes(results)}
{first.measured_at.partition("T")[0]}, medians of {first.rounds} rounds of {first.seconds:g} s. \
{facts({**suite.machine(), **versions})}.
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.applications", description=__doc__)
    parser.add_argument("programs", nargs="*", choices=[*PROGRAMS, []], metavar="PROGRAM")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    window = Window(options.seconds, warmup=options.seconds / 2)
    chosen = [one for one in scenarios() if not options.programs or one.name in options.programs]
    results = [suite.measure(one, window, options.rounds, print) for one in chosen]
    options.page.write_text(page(results))


if __name__ == "__main__":
    main()
