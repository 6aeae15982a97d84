"""One seed and the same datagrams give the same fates, in every run."""

import contextlib
import threading

import pytest

import tomada
from linked import plain, until
from tomada.testing import impaired


@pytest.fixture
def server():
    with plain() as sock:
        yield sock


def test_one_seed_gives_one_log_in_a_hundred_runs(server):
    logs = []
    server.settimeout(0)
    for _ in range(100):
        options = {"loss": 0.2, "duplicate": 0.2, "corrupt": 0.2, "truncate": 0.2, "jitter": 1e-3}
        with plain() as client, impaired(server.getsockname(), seed=7, **options) as link:
            for number in range(40):
                client.sendto(b"%d" % number * 5, link.address)
            until(lambda link=link: link.stats.to_server.received == 40)
            logs.append(link.log)
    assert all(log == logs[0] for log in logs)
    assert {fate.dropped for fate in logs[0]} == {None, "lost"}
    # Another seed gives another log.
    with plain() as client, impaired(server.getsockname(), seed=8, **options) as link:
        for number in range(40):
            client.sendto(b"%d" % number * 5, link.address)
        until(lambda: link.stats.to_server.received == 40)
    assert link.log != logs[0]


def test_an_echo_through_a_link_gives_equal_logs():
    def run():
        with tomada.Server(("127.0.0.1", 0), lambda data, _: data) as server, plain() as client:
            options = {"loss": 0.3, "duplicate": 0.2, "truncate": 0.3}
            with impaired(server, seed=3, **options) as link:
                for number in range(30):
                    before = link.stats
                    client.sendto(b"%03d" % number, link.address)
                    # Its fate and that of the replies are decided before the next one is sent.
                    until(
                        lambda link=link, before=before: (
                            link.stats.to_server.received > before.to_server.received
                            and link.stats.to_client.received == link.stats.to_server.sent
                        )
                    )
                return link.log

    first = run()
    assert {fate.direction for fate in first} == {"to_server", "to_client"}
    assert run() == first


CLIENTS, DATAGRAMS = 4, 12
ALL = {"loss": 0.2, "duplicate": 0.2, "corrupt": 0.2, "truncate": 0.2, "jitter": 1e-3}


def crowd(server, seed):
    """Have several clients send at once, after their first datagrams; return the log."""
    with contextlib.ExitStack() as stack, impaired(server.getsockname(), seed=seed, **ALL) as link:
        clients = [stack.enter_context(plain()) for _ in range(CLIENTS)]
        for number, client in enumerate(clients, 1):
            client.sendto(b"number %d" % number, link.address)
            until(lambda number=number: link.stats.to_server.received == number)
        start = threading.Barrier(CLIENTS)

        def send(client):
            start.wait()
            for number in range(1, DATAGRAMS):
                client.sendto(b"%d" % number * 5, link.address)

        threads = [threading.Thread(target=send, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        until(lambda: link.stats.to_server.received == CLIENTS * DATAGRAMS)
        return link.log


def by_client(log):
    return sorted(log, key=lambda fate: (fate.client, fate.direction, fate.index))


def test_many_clients_have_one_log_each_in_a_hundred_runs(server):
    server.settimeout(0)
    logs = [crowd(server, seed=7) for _ in range(100)]
    first = by_client(logs[0])
    assert all(by_client(log) == first for log in logs)
    # The log itself is in the order of arrival: that of each client, but not between them.
    for log in logs:
        for number in range(CLIENTS):
            mine = [fate.index for fate in log if fate.client == number]
            assert mine == list(range(DATAGRAMS))
        assert [fate.time for fate in log] == sorted(fate.time for fate in log)
    # Clients that send the same datagrams have fates of their own.
    lost = [[fate.dropped for fate in first if fate.client == number] for number in range(CLIENTS)]
    assert len({tuple(it) for it in lost}) == CLIENTS
    assert by_client(crowd(server, seed=8)) != first
