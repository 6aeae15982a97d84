"""The window of a client: how many requests it sends before replies arrive."""

import pytest

from tomada._client.in_flight import Group
from tomada._client.pace import DEFAULT_BUFFER, UP_TO_DATE, Pace

# The short requests that a buffer of the default size holds, at least, while it is read.
HELD = DEFAULT_BUFFER * 3 // 4 // (896 + 128)


class Server:
    """Answers requests in a simulation: each takes a time, `parallel` of them at once."""

    def __init__(self, seconds, parallel):
        self.seconds, self.parallel = seconds, parallel

    def round_trip(self, queued):
        return self.seconds * max(queued / self.parallel, 1)


def saturate(pace, server, seconds, start=0.0):
    """Keep the window full for some time; return the number of requests in flight."""
    now, cost = start, pace.cost(64)
    group = Group(None, [])
    group.cost = cost
    most = 0
    while now < start + seconds:
        pace.charge(group, pace.room(cost))
        most = max(most, group.charged)
        round_trip = server.round_trip(group.charged)
        now += round_trip
        replies = group.charged
        pace.answered(replies, 64, round_trip, now)
        pace.discharge(group, replies)
    return most


def test_window_holds_what_a_default_buffer_holds():
    pace = Pace()
    assert pace.room(pace.cost(64)) == DEFAULT_BUFFER * 9 // 16 // (896 + 128)
    assert pace.room(pace.cost(8000)) == 7
    assert Pace(20_000).room(pace.cost(64)) == 10


def test_one_request_always_has_room():
    assert Pace(1000).room(100_000) == 1


def test_room_is_taken_and_given_back():
    pace = Pace()
    group = Group(None, [])
    group.cost = pace.cost(64)
    whole = pace.room(group.cost)
    pace.charge(group, whole)
    assert pace.room(group.cost) == 0
    pace.discharge(group, 10)
    assert pace.room(group.cost) == 10
    pace.discharge(group, whole)  # more than were taken
    assert pace.room(group.cost) == whole


@pytest.mark.parametrize("seconds", [1e-5, 1e-4, 1e-3])
def test_window_stays_small_for_a_server_that_answers_one_at_a_time(seconds):
    pace = Pace()
    # A single request shows how long one takes.
    pace.answered(1, 64, seconds, 0.0)
    assert saturate(pace, Server(seconds, 1), 5 * UP_TO_DATE) < HELD


def test_window_grows_for_a_server_that_works_on_many_at_once():
    pace = Pace()
    assert saturate(pace, Server(0.05, 5000), 2.0) > 2500


def test_window_shrinks_when_the_server_gets_slow():
    pace = Pace()
    saturate(pace, Server(0.05, 5000), 2.0)
    saturate(pace, Server(0.05, 50), 30.0, 2.0)
    assert pace.window < 1.3 * pace.floor


def test_window_adapts_to_a_longer_way():
    pace = Pace()
    saturate(pace, Server(0.01, 5000), 1.0)
    assert saturate(pace, Server(0.1, 5000), 5 * UP_TO_DATE, 1.0) > 2500


def test_window_stays_small_for_a_server_that_was_held_up():
    pace, slow = Pace(), Server(1e-4, 1)
    pace.answered(1, 64, 0.5, 0.0)
    group = Group(None, [])
    group.cost = pace.cost(64)
    pace.charge(group, pace.room(group.cost))
    for _ in range(2):  # a whole window, after the same time
        pace.answered(52, 64, 0.5, 0.5)
        pace.discharge(group, 52)
    assert saturate(pace, slow, 50.0, 1.0) < HELD


def test_long_replies_count():
    pace = Pace()
    pace.answered(1, 4096, 0.001, 0.0)
    assert pace.cost(64) == 896 + 2 * 4096
    for _ in range(200):
        pace.answered(1, 64, 0.001, 0.0)
    assert pace.cost(64) < 896 + 2 * 128
