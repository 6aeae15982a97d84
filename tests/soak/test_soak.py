"""The soak: how it judges counters, and a short run of it."""

import contextlib
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("matplotlib")

import skips
from benches.children import ROOT
from floods import needs_loadgen
from tests.soak import __main__ as soak
from tests.soak import report
from tests.soak.account import IN_HAND, LONGEST_RUN, Account
from tests.soak.loads import blast
from tests.soak.watch import Sample, growth, in_use


def counted(received, refused=0, kernel_drops=0, filter_drops=0):
    return SimpleNamespace(
        received=received, refused=refused, kernel_drops=kernel_drops, filter_drops=filter_drops
    )


@pytest.mark.parametrize(
    ("sent", "stats", "options", "unexplained"),
    [
        (10, counted(7, 2, 1), {}, 0),
        (10, counted(7, 2), {}, 1),
        (10, counted(7, 1, 1, 1), {}, 0),
        (10, counted(7, 1, 1, 2), {}, 1),
        (138, counted(7, 3, 1, 1), {"run": 64}, 0),
        (10, counted(7, 2, 2), {}, 1),
        (74, counted(7, 3, 1), {"run": 64}, 0),
        (74, counted(7, 3, 1), {"run": None}, 0),
        (10, counted(7, 3, 1), {"run": None}, 1),
        (10 + LONGEST_RUN, counted(7, 3, 1), {"run": None}, 0),
        (11 + LONGEST_RUN, counted(7, 3, 1), {"run": None}, 1),
        (10 + 2 * LONGEST_RUN, counted(7, 3, 1, 1), {"run": None}, 0),
        (11 + 2 * LONGEST_RUN, counted(7, 3, 1, 1), {"run": None}, 1),
        (10 + IN_HAND, counted(10), {"killed": 1}, 0),
        (11 + IN_HAND, counted(10), {"killed": 1}, 1),
        (10, counted(11), {"killed": 1}, 1),
    ],
)
def test_account_finds_unexplained_datagrams(sent, stats, options, unexplained):
    assert Account.of(sent, stats, **options).unexplained == unexplained


def test_account_add_does_not_cancel_out_faults():
    both = Account.of(10, counted(10), counted(1))
    assert both.unexplained == 1
    both.add(Account.of(9, counted(10)))
    assert (both.sent, both.received) == (19, 19)
    assert both.unexplained == 2


def test_account_finds_datagrams_received_but_not_delivered():
    assert Account.of(10, counted(10)).compare(10).unexplained == 0
    assert Account.of(10, counted(10)).compare(9).unexplained == 1


def test_growth_excludes_the_warm_up():
    def samples(*sizes):
        return [Sample("itself", 1, size, size, size, 5, 1) for size in sizes]

    assert growth("x", samples(10, 30, 20, 20, 20, 30, 30, 31)).rss_growth == 1
    assert growth("x", samples(10, 30, 30, 20, 20, 20, 20, 20)).rss_growth == 0
    assert growth("x", samples(10)).rss_growth == 0


def test_growth_of_memory_in_use_is_known_where_the_samples_have_it():
    def samples(*in_use):
        return [Sample("itself", 1, 9, 9, 9, 5, 1, size) for size in in_use]

    assert growth("x", samples(10, 10, 10, 12)).in_use_growth == 2
    assert growth("x", samples(None, None)).in_use_growth is None


@pytest.mark.thread_unsafe(reason="it measures the memory of the process")
def test_memory_in_use_counts_what_is_held_and_not_what_is_free():
    before = in_use()
    if before is None:
        pytest.skip(skips.NO_IN_USE)
    held = bytearray(8 << 20)
    assert in_use() - before >= len(held)
    del held
    assert in_use() - before < 4 << 20


def test_a_soak_that_is_too_slow_says_how_far_it_got():
    options = soak.parser().parse_args(["--datagrams", "1000"])
    found = soak.results(soak.Soak(), options, 1.0)
    assert found["missed"] == ["only 0 of 1,000 datagrams were sent"]


@needs_loadgen
def test_short_soak_leaves_nothing_unexplained(tmp_path):
    if skips.HAS_DTLS:
        skips.program("openssl")
    page = tmp_path / "reliability.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "tests.soak", "--seconds", "6", "--round", "1"),
            *("--datagrams", "100000", "--no-sinks", "--directory", tmp_path),
            *("--results", tmp_path / "soak.json"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads((tmp_path / "soak.json").read_text())
    assert found["shares"]["server"] > 0
    assert found["shares"]["asyncio"] > 0
    for lane, counts in found["lanes"].items():
        assert counts["sent"] > 0, lane
    secured = {"server, DTLS", "transport, DTLS"} if skips.HAS_DTLS else set()
    assert found["lanes"].keys() >= secured | {"server behind a link", "server behind a proxy"}
    guarded = found["lanes"]["server, guarded"]
    assert guarded["filter_drops"] + guarded["kernel_drops"] > 0
    for deed in (
        *("servers started", "workers replaced", "workers killed", "receives cancelled"),
        *("datagrams lost in links", *(["requests answered over DTLS"] if secured else [])),
    ):
        assert found["deeds"][deed] > 0
    assert {growth["process"] for growth in found["processes"]} >= {"servers", "workers: worker"}
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| **all** |" in text


@needs_loadgen
@pytest.mark.thread_unsafe(reason="it runs programs")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("engine", ["Nats", "Brokers"])
def test_sink_accounts_for_everything_while_its_engine_restarts(engine):
    pytest.importorskip("nats")
    pytest.importorskip("confluent_kafka")
    from tests.soak import sinks

    if engine == "Nats":
        skips.program("nats-server")
    lane = getattr(sinks, engine)("sink", blast(500), capacity=100)
    with contextlib.closing(lane):
        (account,) = lane.round(1.5).values()
    assert account.unexplained == 0
    assert account.received > 0
    assert lane.deeds["engines restarted"] == 1
    published, dropped = (
        lane.deeds[f"datagrams {what} by sinks"] for what in ("published", "dropped")
    )
    assert published + dropped == account.received
