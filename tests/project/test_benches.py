"""The benchmarks: how they evaluate samples, and one short run of each kind, without peers."""

import dataclasses
import re
import shutil
import xml.etree.ElementTree as ET

import pytest

pytest.importorskip("matplotlib")

import links
import skips
from benches import compare, plots, report, suite, summary
from benches.children import Child, ChildFailed
from benches.figures import Outcome, Result, judge, speed
from benches.loads import (
    Delayed,
    Echo,
    Load,
    Memory,
    Peers,
    Receive,
    Refuse,
    Relayed,
    RelayedRoundTrip,
    RoundTrip,
    Send,
    Strangers,
    Tasks,
    Window,
    share_lost,
)
from benches.plan import Bar, Scenario, call, check, scenarios
from benches.session_loads import AskSession, Handshakes, SessionMemory, Sessions
from benches.subjects import (
    LINKS,
    ROUND_TRIPS,
    SESSION_CLIENTS,
    SESSION_MEMORY,
    SESSIONS,
    coalescing,
    limit,
    ours,
    peer,
)
from floods import needs_loadgen
from skips import is_privileged

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")

SHORT = Window(seconds=0.1, warmup=0.02)


def sample(rate, cpu_ns, busy=1.0, **others):
    return {"rate": rate, "cpu_ns": cpu_ns, "busy": busy, "disturbed": 0.0, "lost": 0.0, **others}


def outcome(*samples):
    return Outcome(list(samples))


def result_of(load=None, bars=(), **outcomes):
    subjects = tuple(peer(name, "blocking recvfrom") for name in outcomes)
    scenario = Scenario("a-scenario", "receive", "a title", load or Receive(), subjects, bars)
    return Result(scenario, 3, 0.5, "2026-01-01T00:00:00+00:00", outcomes)


def test_outcome_is_the_median_and_the_spread_of_its_samples():
    found = outcome(sample(90, 1), sample(100, 1), sample(120, 1))
    assert found.median("rate") == 100
    assert found.spread("rate") == pytest.approx(0.3)


def test_rates_are_compared_if_both_were_at_their_limit():
    fast, slow = outcome(sample(300, 3)), outcome(sample(100, 12))
    assert speed(fast, slow).ratio == 3
    assert not speed(fast, slow).is_by_cpu


def test_cpu_time_is_compared_if_the_load_was_the_bottleneck():
    idle, slow = outcome(sample(300, 3, busy=0.5)), outcome(sample(100, 12))
    assert speed(idle, slow).ratio == 4
    assert speed(slow, idle).is_by_cpu


def test_subject_displaced_from_its_core_is_not_idle():
    disturbed = outcome(sample(300, 3, busy=0.6) | {"disturbed": 0.39})
    assert disturbed.is_busy


@pytest.mark.parametrize(
    ("bar", "is_met"),
    [
        (Bar("ours", "theirs", 3), True),
        (Bar("ours", "theirs", 3.1), False),
        (Bar("ours", "theirs", 0.5, "p50"), True),
        (Bar("ours", "theirs", 0.4, "p50"), False),
        (Bar("ours", "theirs", 1024, "bytes"), True),
        (Bar("ours", "theirs", 1023, "bytes"), False),
        (Bar("ours", "theirs", 2, "call_ns"), True),
        (Bar("ours", "theirs", 2.1, "call_ns"), False),
        (Bar("ours", "", 5, "p50"), True),
        (Bar("ours", "", 4, "p50"), False),
        (Bar("ours", "nobody", 0), False),
        (Bar("ours", "failed", 0), False),
    ],
)
def test_bar_is_met_or_missed(bar, is_met):
    outcomes = {
        "ours": outcome(sample(300, 3, p50=5, bytes=2048, call_ns=50)),
        "theirs": outcome(sample(100, 9, p50=10, bytes=1024, call_ns=100)),
        "failed": Outcome(failure="it does not even start"),
    }
    assert judge(bar, outcomes).is_met is is_met


def test_table_has_a_row_for_each_subject_and_explains_failures():
    result = result_of(
        socket=outcome(sample(1e6, 1000)),
        idle=outcome(sample(2e6, 250, busy=0.5)),
        failed=Outcome(failure="ended with 1: no such thing"),
    )
    text = report.table(result)
    assert "| socket | 1 M | 0% | 1 µs | 100% | 0.0% | 1.00 |" in text
    assert "| idle | 2 M | 0% | 250 ns | 50% | 0.0% | 4.00 by CPU |" in text
    assert "| failed | failed |" in text
    assert "failed: ended with 1: no such thing" in text


def test_missed_bar_is_reported():
    bars = (Bar("ours", "socket", 2), Bar("ours", "socket", 4))
    result = result_of(bars=bars, socket=outcome(sample(1, 3)), ours=outcome(sample(3, 1)))
    text = report.bars(result, with_title=False)
    assert "| ours | socket | ≥ 2 × | 3 × | met |" in text
    assert "| ours | socket | ≥ 4 × | 3 × | **missed** |" in text


def test_chart_has_a_row_for_each_measured_subject():
    result = result_of(
        socket=outcome(sample(90, 1), sample(100, 1), sample(120, 1)),
        ours=outcome(sample(20_000, 1)),
        failed=Outcome(failure="why"),
    )
    chart = ET.fromstring(plots.chart(result))  # noqa: S314 - the test made it
    svg = "{http://www.w3.org/2000/svg}"
    marks = [chart.find(f".//{svg}g[@id='median-{row}']//{svg}use") for row in range(2)]
    assert float(marks[0].get("x")) < float(marks[1].get("x"))
    assert chart.find(f".//{svg}g[@id='median-2']") is None


def test_page_is_unchanged_for_a_scenario_that_was_not_measured(tmp_path):
    result = result_of(socket=outcome(sample(1, 2)))
    other = dataclasses.replace(result.scenario, name="another")
    assert report.write(tmp_path, [result.scenario, other], [result], {}) == ["receive"]
    assert not list(tmp_path.iterdir())
    assert report.write(tmp_path, [result.scenario], [result], {"cores": "2"}) == []
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md",
        "receive.md",
        "a-scenario.svg",
    }


def test_results_are_read_as_they_were_written(tmp_path):
    result = result_of(socket=outcome(sample(1, 2)), failed=Outcome(failure="why"))
    path = tmp_path / "results.json"
    suite.save(path, [result], {"cores": "2"})
    assert suite.load(path, [result.scenario]) == [result]
    assert suite.load(path, []) == []


def test_loss_is_the_share_that_did_not_arrive():
    assert share_lost(100, 75) == 0.25
    assert share_lost(100, 101) == 0
    assert share_lost(0, 0) == 0


def test_plan_is_consistent():
    planned = scenarios()
    assert len({scenario.name for scenario in planned}) == len(planned)
    for scenario in planned:
        assert scenario.page in report.PAGES
        names = [subject.name for subject in scenario.subjects]
        assert len(set(names)) == len(names)
        for bar in scenario.bars:
            assert {bar.subject, bar.reference} <= {*names, ""}


class Fails(Load):
    """Always fails, and counts its calls."""

    metrics = ("rate",)
    asked = 0

    def measure(self, subject, _window):
        type(self).asked += 1
        raise ChildFailed(f"{subject.name} does nothing")


def test_failed_subject_is_not_tried_again():
    scenario = Scenario("fails", "receive", "it fails", Fails(), (peer("socket", "no program"),))
    outcomes = suite.measure(scenario, SHORT, 3).outcomes
    assert outcomes == {"socket": Outcome(failure="socket does nothing")}
    assert Fails.asked == 1


def test_failed_program_explains_why():
    with (
        Child("blocking no_such_function", 0, 1) as child,
        pytest.raises(ChildFailed, match=r"AttributeError: .*no_such_function"),
    ):
        child.line()


@needs_loadgen
@pytest.mark.parametrize(
    "load",
    [Receive(), Receive(size=1200, gso=False), Peers(), Peers(peers=8, rate=20_000)],
    ids=str,
)
def test_receivers_are_measured(load):
    run(
        load,
        limit("recvmmsg", "limit-recv", gro=True),
        peer("socket", "blocking recvfrom"),
        ours("recv_many", "batches recv_many", module="tomada", gro=True),
        ours("recv_batch", "batches recv_batch", module="tomada"),
        ours("asyncio", "protocols receive", module="tomada", loop="tomada", gro=True),
    )


@needs_loadgen
def test_receivers_that_coalesce_are_measured():
    run(Peers(rate=20_000), *coalescing(200e-6))


@needs_loadgen
@pytest.mark.parametrize("name", ["peers-list", "opening", "wire"])
def test_subjects_of_scenario_are_measured(name):
    (scenario,) = (one for one in scenarios() if one.name == name)
    if scenario.needs_root:
        skips.program("ethtool")
        if reason := links.why_not():
            pytest.skip(reason)
    run(scenario.load, *(one for one in scenario.subjects if one.options.get("loop") != "uvloop"))


@needs_loadgen
@pytest.mark.parametrize("load", [Send(), Send(peers=300)], ids=str)
def test_senders_are_measured(load):
    run(
        load,
        limit("sendmmsg", "limit-send", mode="sendmmsg"),
        peer("socket", "blocking sendto"),
        ours("send_many", "batches send_many", module="tomada"),
        ours("send_batch", "batches send_batch", module="tomada"),
    )


@needs_loadgen
@pytest.mark.parametrize("load", [Echo(), Echo(in_flight=32, gso=True)], ids=str)
def test_echo_servers_are_measured(load):
    run(
        load,
        limit("recvmmsg", "echo"),
        peer("socketserver", "servers standard"),
        ours("recv_many", "batches echo_many", module="tomada", gro=True),
    )


@needs_loadgen
@pytest.mark.parametrize("delay", [0.0, 0.001])
def test_tasks_are_measured(delay):
    run(
        Tasks(tasks=20, delay=delay),
        limit("all in flight", "load", clients=2, window=10),
        peer("asyncio, by hand", "tasks multiplexer", loop="asyncio"),
        ours("Endpoint.request", "tasks endpoint", loop="tomada"),
        ours("asyncio.Client", "tasks client", loop="tomada"),
    )


@needs_loadgen
def test_round_trips_are_measured():
    run(RoundTrip(), *ROUND_TRIPS)


@needs_loadgen
@pytest.mark.parametrize(
    "load", [RelayedRoundTrip(), Relayed(rate=5000), Delayed()], ids=["trip", "rate", "delay"]
)
def test_links_are_measured(load):
    run(load, *LINKS)


@needs_loadgen
@pytest.mark.parametrize(
    ("load", "subjects"),
    [
        (Sessions(sessions=50), SESSIONS),
        (Sessions(sessions=50, size=1200), SESSIONS),
        (Handshakes(), SESSIONS),
        (SessionMemory(sessions=50), SESSION_MEMORY),
        (AskSession(), SESSION_CLIENTS),
    ],
    ids=["records", "long records", "handshakes", "memory", "client"],
)
def test_sessions_are_measured(load, subjects):
    pytest.importorskip("tomada.dtls", exc_type=ImportError)
    skips.program("openssl")
    run(load, *(subject for subject in subjects if subject.group != "peer"))


@needs_loadgen
def test_memory_is_measured():
    run(Memory(sockets=100), ours("recv_many", "batches memory", module="tomada"))


@needs_loadgen
def test_single_calls_and_refusals_are_rows_of_a_table():
    scenario = call("call-1", "recv(2048)", 0.0)
    result = suite.measure(scenario, SHORT, 1, attempts=1)
    failed = dataclasses.replace(result, outcomes={**result.outcomes, "tomada": Outcome([], "why")})
    text = report.page_of("per-call", [result, failed])
    assert "| call | standard, ns | tomada, ns | ratio | target |" in text
    assert re.search(
        r"^\| recv\(2048\) \| [\d,]+ \| [\d,]+ \| [\d.]+ × \| ≥ 0 × \|$", text, re.MULTILINE
    )
    assert "| recv(2048) | failed | why |" in text


@needs_loadgen
@pytest.mark.skipif(not is_privileged(), reason="only root may forge addresses")
def test_refusals_and_floods_are_measured():
    run(Refuse(queued=500), *check("refuse-1", "too long", 1.15).subjects)
    run(Strangers(sources=50_000), ours("Guard", "guards reply", module="tomada"))


def run(load, *subjects):
    """Measure once, and check that everything on the page is there."""
    scenario = Scenario("tiny", "receive", "as short as possible", load, subjects)
    result = suite.measure(scenario, SHORT, 1, attempts=1)
    for name, found in result.outcomes.items():
        assert not found.failure, f"{name}: {found.failure}"
        assert set(load.metrics) <= set(found.samples[0])
    assert "failed" not in report.page_of("receive", [result])
    if report.has_chart(result):
        ET.fromstring(plots.chart(result))  # noqa: S314 - the test made it


def test_compare_uses_the_metric_of_the_scenario():
    echo, memory = (next(s for s in scenarios() if s.name == n) for n in ("echo-64", "memory"))
    fast, slow = outcome(sample(300, 3)), outcome(sample(100, 9))
    idle = outcome(sample(100, 6, busy=0.5))
    assert compare.compare(echo, slow, fast) == ("rate", 3)
    assert compare.compare(echo, slow, idle) == ("cpu_ns", 1.5)
    large, small = outcome(sample(1, 1, bytes=4096)), outcome(sample(1, 1, bytes=1024))
    assert compare.compare(memory, large, small) == ("bytes", 4)


def test_compare_measures_each_of_our_subjects_with_both_builds():
    (echo,) = compare.ours(scenario for scenario in scenarios() if scenario.name == "echo-64")
    subjects = compare.paired(echo, "/old/python").subjects
    assert len(subjects) == 2 * len(echo.subjects) > 0
    assert [subject.python for subject in subjects[:2]] == ["/old/python", None]
    assert subjects[0].program == subjects[1].program


def test_compare_shows_both_builds_and_fails_below_the_limit(capsys):
    (scenario,) = compare.ours([call("call-1", "recv(2048)", 0.97)])
    paired = compare.paired(scenario, "/old/python")
    outcomes = {
        "old: tomada": outcome({"call_ns": 100.0}),
        "new: tomada": outcome({"call_ns": 125.0}),
    }
    result = Result(paired, 1, 0.5, "2026-01-01T00:00:00+00:00", outcomes)
    assert compare.show([result], 0.8) == 0
    assert compare.show([result], 0.9) == 1
    assert "call_ns" in capsys.readouterr().out


def texts(path):
    """Return the texts of a chart: its title, the labels and the figures."""
    texts = (element.text for element in ET.parse(path).iter())  # noqa: S314 - made here
    return [text.strip() for text in texts if text and text.strip()]


def test_summary_shows_the_figures_of_the_pages(tmp_path):
    for path in summary.DIRECTORY.glob("*.md"):
        shutil.copy(path, tmp_path)
    assert summary.write(tmp_path)
    table = (tmp_path / "README.md").read_text()
    assert table == (summary.DIRECTORY / "README.md").read_text()
    for name in ("summary-light.svg", "summary-dark.svg"):
        # Another version of the plotting library may place them differently.
        new, old = (texts(directory / name) for directory in (tmp_path, summary.DIRECTORY))
        assert new == old
        assert {"303 k", "tomada.Server", summary.TITLE} < set(new)
    page = tmp_path / "echo.md"
    page.write_text(page.read_text().replace("tomada: Server | 303 k", "tomada: Server | 1 M"))
    summary.write(tmp_path)
    assert "tomada.Server 1 M" in (tmp_path / "summary-dark.svg").read_text()
    assert "`Server` | 40.1 k | 156 k | 178 k | 1 M |" in (tmp_path / "README.md").read_text()


def test_summary_is_left_out_without_its_pages(tmp_path):
    assert not summary.write(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["README.md", "docs/index.md", "docs/how-to/from-socketserver.md"])
def test_documents_claim_what_was_measured(name):
    root = summary.DIRECTORY.parents[1]
    claims = re.findall(r"([\d.]+)\s+times", (root / name).read_text())
    results = (summary.DIRECTORY / "README.md").read_text()
    assert claims
    assert [claim for claim in claims if f"| {claim} × |" not in results] == []
