"""Workers: processes on one port, supervised, replaced, and counted together."""

import os
import signal
import threading
import time

import pytest

import tomada
from peer import DEADLINE
from serving import Load, ask, client, refused, server
from support import Call, eventually, open_descriptors, run
from tomada._server import supervisor
from traffic import numbered

pytestmark = pytest.mark.thread_unsafe(reason="it forks")


def tell_pid(data, address):
    return b"%d %s" % (os.getpid(), data)


class Breakable:
    """An ``init`` that fails while the file ``broken`` exists."""

    def __init__(self, folder):
        self.broken, self._failed = folder / "broken", folder / "failed"
        self._failed.touch()

    def __call__(self):
        if self.broken.exists():
            with self._failed.open("a") as file:
                file.write("x")
            raise LookupError("gone")

    def failures(self):
        """Return how often it has failed, in all processes."""
        return self._failed.stat().st_size


def is_gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def all_sent(serving):
    """Return the counters once they include every reply: one may arrive before it is counted."""
    stats = serving.stats()
    return stats if stats.received == stats.sent else None


def pids_of(serving, count=2):
    """Send requests from new ports until this number of workers has replied."""
    found = set()
    eventually(lambda: found.add(int(ask(serving.address).split()[0])) or len(found) == count)
    return found


def test_workers_share_one_port_and_their_counters():
    with server(tell_pid, workers=2) as serving:
        pids = pids_of(serving)
        assert os.getpid() not in pids
        stats = eventually(lambda: all_sent(serving))
    for pid in pids:
        assert is_gone(pid)
    assert serving.stats().received == stats.received


def test_killed_worker_is_replaced_under_load_and_its_counters_survive():
    with server(tell_pid, workers=2, steering="random") as serving:
        with Load(serving.address, clients=6, timeout=1) as load:
            eventually(lambda: len(load.replies) == 2)
            before = serving.stats()
            victim = int(min(load.replies))
            os.kill(victim, signal.SIGKILL)
            # Every client continues, those of the victim when its successor has taken over its
            # socket.
            progress = list(load.progress)
            eventually(
                lambda: all(
                    now > then + 10 for now, then in zip(load.progress, progress, strict=True)
                )
            )
            eventually(lambda: len(load.replies) == 3)
        stats = serving.stats()
        assert load.refused == 0
        # Datagrams that the victim had received without a reply, at most one from each client.
        assert load.lost <= 6
        assert stats.restarts == 1
        assert stats.received >= load.answered > before.received
        assert victim not in pids_of(serving)


def test_datagrams_queued_for_a_dead_worker_wait_for_the_next_one():
    with server(tell_pid, workers=2) as serving, client(serving.address) as sock:
        sock.send(b"who are you")
        victim = int(sock.recv(100).split()[0])
        os.kill(victim, signal.SIGSTOP)
        queued = numbered(50)
        for data in queued:
            sock.send(data)
        os.kill(victim, signal.SIGKILL)
        replies = [sock.recv(100).split() for _ in queued]
        assert [data for _, data in replies] == queued
        assert victim not in {int(pid) for pid, _ in replies}


def test_replacing_the_workers_under_load_loses_nothing():
    with (
        server(tell_pid, workers=2, steering="random") as serving,
        Load(serving.address, clients=6) as load,
    ):
        eventually(lambda: len(load.replies) == 2)
        for count in (4, 6):
            serving.replace_workers()
            eventually(lambda: len(load.replies) == count)  # noqa: B023 - called immediately
        load.stop()
        assert (load.lost, load.refused) == (0, 0)
        stats = eventually(lambda: all_sent(serving))
        assert stats.received == load.answered
        assert stats.restarts == 0
        for pid in sorted(map(int, load.replies))[:4]:
            eventually(lambda: is_gone(pid))  # noqa: B023 - called immediately


def test_stopping_under_load_replies_to_or_refuses_every_request():
    with (
        server(tell_pid, workers=2, steering="random") as serving,
        Load(serving.address, clients=6) as load,
    ):
        eventually(lambda: load.answered > 200)
        serving.stop()
        load.join()
        assert load.lost == 0
        assert load.refused == 6
        stats = serving.stats()
        assert stats.received == stats.sent == load.answered


def test_successor_that_cannot_start_leaves_the_old_worker_running(tmp_path):
    init = Breakable(tmp_path)
    with server(tell_pid, workers=2, init=init) as serving:
        pids = pids_of(serving)
        init.broken.touch()
        serving.replace_workers()
        Call(lambda: [ask(serving.address) for _ in range(50)]).result()
        assert pids_of(serving) == pids
        assert serving.stats().restarts == 0


def test_worker_that_cannot_start_ends_the_server_with_its_error():
    def init():
        raise LookupError("no such database")

    serving = server(tell_pid, workers=2, init=init)
    with pytest.raises(LookupError, match="no such database") as caught:
        serving.start()
    assert "In the worker" in caught.value.__notes__[0]
    serving.stop()


def test_error_that_cannot_be_pickled_is_reported_as_text():
    class LocalError(Exception):
        pass

    def init():
        raise LocalError("only here")

    with pytest.raises(RuntimeError, match=r"LocalError.*only here"):
        server(tell_pid, workers=2, init=init).start()


def test_worker_that_dies_before_it_is_ready_ends_the_server():
    with pytest.raises(RuntimeError, match="SIGKILL"):
        server(tell_pid, workers=2, init=lambda: os.kill(os.getpid(), signal.SIGKILL)).start()


@pytest.fixture
def impatient(monkeypatch):
    """Have dead workers restarted at once."""
    monkeypatch.setattr(supervisor, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(supervisor, "LAST_DELAY", 0.02)


@pytest.mark.usefixtures("impatient")
def test_workers_that_can_no_longer_start_end_the_server_after_some_attempts(tmp_path):
    init = Breakable(tmp_path)
    serving = server(tell_pid, workers=2, init=init)
    serving.start()
    forever = Call(serving.serve_forever)
    pids = pids_of(serving)
    init.broken.touch()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(LookupError, match="gone"):
        forever.result()
    assert serving.stats().restarts == 2


@pytest.mark.usefixtures("impatient")
def test_worker_that_can_no_longer_start_is_tried_again_while_another_one_runs(tmp_path):
    init = Breakable(tmp_path)
    with server(tell_pid, workers=2, init=init) as serving:
        victim, other = pids_of(serving)
        init.broken.touch()
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: init.failures() > 2 * supervisor.ATTEMPTS)
        assert serving.status == "running"
        assert serving.stats().restarts == 1
        init.broken.unlink()
        # Requests that the dead worker has not received wait for the next one.
        with tomada.Client(serving.address, timeout=DEADLINE) as asking:
            found = set()
            eventually(lambda: found.add(asking.request(b"").split()[0]) or len(found) == 2)
        assert b"%d" % other in found
        assert b"%d" % victim not in found


def test_handler_that_ends_its_process_counts_as_a_death():
    def handle(data, _):
        if data == b"exit":
            raise SystemExit(3)
        return tell_pid(data, _)

    with server(handle, workers=2) as serving, client(serving.address) as sock:
        sock.send(b"hello")
        first = sock.recv(100)
        sock.send(b"exit")
        eventually(lambda: serving.stats().restarts == 1)
        sock.send(b"hello")
        assert sock.recv(100).split()[0] != first.split()[0]


def test_handler_may_stop_its_server_and_read_the_stats_of_all_workers():
    def handle(data, _):
        if data == b"stop":
            serving.stop()
        return b"%d" % serving.stats().received

    serving = server(handle, workers=2)
    forever = Call(serving.serve_forever)
    serving.ready.wait()
    counts = {int(ask(serving.address)) for _ in range(20)}
    assert counts == set(range(1, 21))
    assert ask(serving.address, b"stop") == b"21"
    forever.result()


def test_handler_that_does_not_return_is_killed_by_stop():
    def handle(data, _):
        os.write(write, b"%d\n" % os.getpid())
        while True:
            time.sleep(60)

    read, write = os.pipe()
    with server(handle, workers=2, drain=0.1) as serving, client(serving.address) as sock:
        sock.send(b"x")
        pid = int(os.read(read, 100))
    assert is_gone(pid)
    os.close(read)
    os.close(write)


def test_init_runs_once_in_each_worker():
    read, write = os.pipe()
    with server(tell_pid, workers=3, init=lambda: os.write(write, b"%d\n" % os.getpid())):
        assert len(set(os.read(read, 1000).split())) == 3
    os.close(read)
    os.close(write)


def test_sendto_works_in_the_parent_and_in_a_worker():
    def handle(data, address):
        threading.Thread(target=serving.sendto, args=(b"from a thread", address)).start()

    # Created before the start, so that the workers inherit it.
    serving = server(handle, workers=2)
    with serving, client(serving.address) as sock:
        sock.send(b"x")
        assert sock.recv(100) == b"from a thread"
        serving.sendto(b"from the parent", sock.getsockname())
        assert sock.recv(100) == b"from the parent"
        eventually(lambda: serving.stats().sent == 2)


def test_stop_leaves_no_process_and_no_descriptor():
    before = open_descriptors()
    for _ in range(3):
        with server(tell_pid, workers=2) as serving:
            pids = pids_of(serving)
        assert all(is_gone(pid) for pid in pids)
        with client(serving.address) as sock:
            assert refused(sock)
    eventually(lambda: open_descriptors() <= before)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_port_of_a_server_with_workers_is_taken():
    with server(tell_pid, workers=2) as serving:
        for workers in (1, 2):
            other = server(tell_pid, serving.address, workers=workers)
            with pytest.raises(OSError, match=r"Address already in use.*127.0.0.1:\d+"):
                other.start()
        assert ask(serving.address)


def test_workers_on_a_path_share_its_socket(unix):
    with server(tell_pid, unix.address(), workers=2) as serving:
        found = set()

        def one():
            with client(serving.address, local=unix.address()) as sock:
                sock.send(b"x")
                found.add(sock.recv(100))
            return len(found) == 2

        eventually(one)


@pytest.mark.parametrize("workers", [2, 4])
def test_hash_steering_gives_each_peer_one_worker(workers):
    with server(tell_pid, workers=workers) as serving, client(serving.address) as sock:
        replies = set()
        for _ in range(50):
            sock.send(b"x")
            replies.add(sock.recv(100))
        assert len(replies) == 1


def test_random_steering_gives_a_peer_every_worker():
    with server(tell_pid, workers=2, steering="random") as serving, client(serving.address) as sock:
        replies = set()
        for _ in range(100):
            sock.send(b"x")
            replies.add(sock.recv(100))
        assert len(replies) == 2


def test_cpu_steering_selects_the_worker_of_the_cpu():
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        pytest.skip("this machine has one CPU")
    with server(tell_pid, workers=2, steering="cpu") as serving:
        workers = []
        for cpu in cpus:
            os.sched_setaffinity(0, {cpu})
            try:
                workers.append({ask(serving.address) for _ in range(30)})
            finally:
                os.sched_setaffinity(0, cpus)
        assert [len(found) for found in workers] == [1, 1]
        assert (workers[0] == workers[1]) == (cpus[0] % 2 == cpus[1] % 2)


def test_main_module_needs_no_guard_and_output_is_not_doubled():
    program = """
import os, socket, tomada
print("before", end=" ")
def handle(data, address):
    print("handled", flush=True)
    return data
with tomada.Server(("127.0.0.1", 0), handle, workers=2) as server:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.sendto(b"x", server.address)
        s.recv(10)
print("after")
"""
    assert run(program).split() == ["before", "handled", "after"]


def test_restart_delay_never_exceeds_its_maximum():
    # As many deaths as would take hours, without the delays between them.
    slot, restarting = supervisor.Slot(0), object.__new__(supervisor.Supervisor)
    for _ in range(2000):
        restarting._restart(slot, "it has died")
        assert slot.start_at <= time.monotonic() + supervisor.LAST_DELAY


@pytest.mark.usefixtures("impatient")
def test_reload_with_repaired_code_starts_dead_workers_and_succeeds(tmp_path):
    init = Breakable(tmp_path)
    with server(tell_pid, workers=2, init=init) as serving:
        life = serving._life  # noqa: SLF001 - what systemd and the metrics are told
        init.broken.touch()
        os.kill(pids_of(serving).pop(), signal.SIGKILL)
        eventually(lambda: len(life.live_workers) == 1)
        serving.replace_workers()
        eventually(lambda: life.replacements == 1)
        assert life.has_failed_to_replace
        init.broken.unlink()
        serving.replace_workers()
        eventually(lambda: life.replacements == 2)
        assert not life.has_failed_to_replace
        assert life.live_workers == {0, 1}


@pytest.mark.usefixtures("impatient")
def test_worker_that_reaches_a_limit_and_cannot_be_replaced_is_no_failed_reload(tmp_path):
    init = Breakable(tmp_path)
    with server(tell_pid, workers=2, init=init, max_requests=1) as serving:
        init.broken.touch()
        eventually(lambda: ask(serving.address) and init.failures())
        eventually(lambda: ask(serving.address) and len(serving._life.live_workers) == 2)  # noqa: SLF001
        assert not serving._life.has_failed_to_replace  # noqa: SLF001
