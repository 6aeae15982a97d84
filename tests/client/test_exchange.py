"""The schedule of a request's attempts, and the round-trip estimate they update."""

import errno
import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tomada._client.exchange import Exchange
from tomada._client.retry import LONGEST_WAIT, SHORTEST_WAIT, Retry
from tomada._client.round_trip import LEAST_MARGIN, RoundTrip
from tomada._peer_errors import FROM_PEERS

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")

START = 1000.0

RETRIES = st.builds(
    Retry,
    st.floats(1e-4, 1e4),
    st.integers(0, 40),
    backoff=st.floats(1, 10),
    jitter=st.floats(0, 0.49),
)


def known(*samples):
    """Return an estimate with the given round-trip samples."""
    round_trip = RoundTrip()
    for elapsed in samples:
        round_trip.sample(elapsed, START)
    return round_trip


ROUND_TRIPS = st.builds(lambda samples: known(*samples), st.lists(st.floats(1e-5, 1e3), max_size=5))


def never(*_):
    return 0.0


def exchange(retry, round_trip=None, is_answer=None, uniform=never):
    return Exchange(
        retry, RoundTrip() if round_trip is None else round_trip, START, is_answer, uniform
    )


def moments(retry, round_trip=None, uniform=never):
    """Make all attempts, each as soon as the previous wait is over; return when the waits end."""
    attempts, now, ends = exchange(retry, round_trip, uniform=uniform), START, []
    while attempts.attempt(now):
        now = attempts.due
        ends.append(now - START)
    assert attempts.attempts == len(ends)
    return ends


# The round-trip estimate


def test_waits_double_and_the_last_is_as_long_as_the_first():
    assert moments(Retry(1.0, 3)) == pytest.approx([0.125, 0.375, 0.875, 1.0])


def test_first_wait_is_at_most_a_second():
    assert LONGEST_WAIT == 1.0
    assert moments(Retry(15.0, 3)) == pytest.approx([1.0, 5.0, 13.0, 15.0])


def test_backoff_of_1_divides_the_time_evenly():
    assert moments(Retry(1.0, 3, backoff=1)) == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_zero_retries_is_one_attempt_for_the_whole_time():
    for round_trip in (None, known(0.01), known(10.0)):
        assert moments(Retry(2.0, 0), round_trip) == [2.0]


def test_first_wait_comes_from_the_round_trip_estimate():
    # The first sample: SRTT is 10 ms, and RTTVAR half of that.
    assert RoundTrip().first_wait(Retry(1.0, 3)) == 0.125
    assert known(0.01).first_wait(Retry(1.0, 3)) == pytest.approx(0.01 + LEAST_MARGIN)
    assert known(0.1).first_wait(Retry(1.0, 3)) == pytest.approx(0.1 + 4 * 0.05)
    # The second: RTTVAR is 3/4 * 50 ms + 1/4 * 100 ms, and SRTT is 7/8 * 100 ms + 1/8 * 200 ms.
    assert known(0.1, 0.2).first_wait(Retry(1.0, 3)) == pytest.approx(0.1125 + 4 * 0.0625)


def test_wait_for_a_steady_server_is_50_ms_longer_than_its_round_trip():
    assert known(*[0.08] * 100).first_wait(Retry(1.0, 3)) == pytest.approx(0.13)
    # For a short request, at most the wait without an estimate.
    assert known(*[1e-3] * 100).first_wait(Retry(0.08, 3)) == pytest.approx(0.011)


def test_time_after_the_first_wait_is_divided():
    ends = moments(Retry(1.0, 3), known(*[0.0] * 100))
    rest = 0.95 / 7
    assert ends == pytest.approx([0.05, 0.05 + 2 * rest, 0.05 + 6 * rest, 1.0])


def test_attempt_that_cannot_be_answered_in_time_is_not_made():
    assert moments(Retry(1.0, 3), known(*[0.3] * 100)) == pytest.approx([0.35, 0.65, 1.0], abs=1e-3)
    assert moments(Retry(1.0, 3), known(5.0)) == [1.0]


@pytest.mark.parametrize("seconds", [0.34, 0.4, 0.9])
def test_one_late_reply_leaves_time_for_a_second_attempt(seconds):
    # SRTT + 4 * RTTVAR of a single sample is three times as long.
    wait = max(0.5, seconds + LEAST_MARGIN)
    assert known(seconds).first_wait(Retry(1.0, 3)) == pytest.approx(wait)
    assert moments(Retry(1.0, 3), known(0.34))[0] == 0.5
    assert len(moments(Retry(30.0, 3), known(12.0))) > 1


def test_retransmitted_request_doubles_the_wait_and_is_not_a_sample():
    retry, round_trip = Retry(1.0, 3), RoundTrip()
    for wait in (0.25, 0.5, 0.5):
        attempts = exchange(retry, round_trip)
        attempts.attempt(START)
        attempts.attempt(attempts.due)
        attempts.complete(START + 0.13)
        assert round_trip.smoothed == 0.0
        assert round_trip.first_wait(retry) == pytest.approx(wait)
    attempts = exchange(retry, round_trip)
    attempts.attempt(START)
    attempts.complete(START + 0.13)
    assert round_trip.smoothed == pytest.approx(0.13)
    assert round_trip.first_wait(retry) == pytest.approx(3 * 0.13)


def test_requests_that_fail_together_double_the_wait_once():
    retry, round_trip = Retry(1.0, 3), RoundTrip()
    together = [exchange(retry, round_trip) for _ in range(10)]
    for attempts in together:
        attempts.attempt(START)
    for attempts in together:
        attempts.attempt(attempts.due)
    assert round_trip.first_wait(retry) == 0.25


@pytest.mark.parametrize("seconds", [0.08, 0.13, 0.2, 0.3, 0.4])
def test_slow_server_soon_gets_one_attempt_per_request(seconds):
    retry, round_trip, now, sent = Retry(1.0, 3), RoundTrip(), START, []
    for _ in range(10):
        attempts = Exchange(retry, round_trip, now, uniform=never)
        reply_at = now + seconds
        while attempts.due < reply_at:
            assert attempts.attempt(attempts.due)
        attempts.complete(reply_at)
        sent.append(attempts.attempts)
        now = reply_at
    assert sent[0] == (1 if seconds < 0.125 else 2 if seconds < 0.375 else 3)
    assert sent[2:] == [1] * 8


# Properties


@given(RETRIES, ROUND_TRIPS, st.data())
def test_attempts_are_in_order_up_to_the_deadline(retry, round_trip, data):
    def uniform(low, high):
        return data.draw(st.floats(low, high))

    ends = moments(retry, round_trip, uniform)
    assert ends[-1] == pytest.approx(retry.timeout)
    assert 1 <= len(ends) <= retry.retries + 1
    assert all(one < other for one, other in itertools.pairwise([0.0, *ends]))


@given(RETRIES)
def test_all_attempts_are_made_if_there_is_time(retry):
    most = retry.retries + 1
    assert len(moments(retry)) == retry.count
    if retry.count < most:
        shares = 1 + sum(retry.backoff**number for number in range(retry.count))
        assert retry.timeout / shares < SHORTEST_WAIT * (1 + 1e-9)


@given(RETRIES, st.data())
def test_jitter_delays_an_attempt_by_up_to_its_share_of_the_wait(retry, data):
    def uniform(low, high):
        return data.draw(st.floats(low, high))

    steady = Retry(retry.timeout, retry.retries, backoff=retry.backoff, jitter=0)
    due, moved = moments(steady), moments(retry, uniform=uniform)
    assert len(due) == len(moved)
    waits = [end - start for start, end in itertools.pairwise([0.0, *due])]
    for number, (one, other, wait) in enumerate(zip(due, moved, waits, strict=True)):
        late = other - one
        assert -1e-6 <= late <= retry.jitter * wait + (number + 1) * SHORTEST_WAIT + 1e-6


def test_delayed_process_still_waits_after_each_attempt():
    attempts = exchange(Retry(1.0, 3))
    attempts.attempt(START)
    now = START + 0.9  # the second and the third attempt were due long ago
    for _ in range(2):
        assert attempts.attempt(now)
        assert attempts.due >= now + SHORTEST_WAIT
    assert attempts.attempt(now)
    assert attempts.due == attempts.deadline
    assert not attempts.attempt(now)


def test_no_attempt_begins_after_the_deadline():
    attempts = exchange(Retry(1.0, 3))
    attempts.attempt(START)
    assert not attempts.attempt(START + 1.0)
    assert attempts.attempts == 1


def test_jitter_differs_without_a_seed():
    ends = set()
    for _ in range(50):
        attempts = Exchange(Retry(1.0, 3), RoundTrip(), START)
        attempts.attempt(START)
        ends.add(attempts.due)
    assert len(ends) > 1


# Ports and outcomes


def test_port_is_reused_only_if_no_other_reply_can_arrive():
    def after(attempts, is_complete, is_answer=None):
        asking = exchange(Retry(1.0, 3), is_answer=is_answer)
        for _ in range(attempts):
            asking.attempt(asking.due)
        if is_complete:
            asking.complete(asking.due)
        return asking.may_reuse_port

    assert after(1, is_complete=True)
    assert not after(1, is_complete=False)  # it timed out, or was cancelled
    assert not after(2, is_complete=True)
    assert after(2, is_complete=False, is_answer=bool)


def test_without_a_match_every_datagram_is_the_reply():
    assert exchange(Retry()).accepts(b"")
    assert not exchange(Retry(), is_answer=bool).accepts(b"")


def test_refusal_is_raised_or_is_the_cause_of_the_timeout():
    refusal = ConnectionRefusedError()
    asking = exchange(Retry(1.0, 3))
    asking.refuse(refusal)
    assert asking.timed_out("/run/server", START).__cause__ is refusal
    with pytest.raises(ConnectionRefusedError):
        exchange(Retry(1.0, 3, retry_refused=False)).refuse(refusal)


def test_only_refusals_are_raised():
    asking = exchange(Retry(1.0, 3, retry_refused=False))
    for number in FROM_PEERS - {errno.ECONNREFUSED}:
        error = OSError(number, "what an ICMP message brings")
        asking.refuse(error)
        assert asking.refusal is error


def test_attempt_too_long_for_the_path_is_repeated_at_once_without_moving_the_next():
    too_long = OSError(errno.EMSGSIZE, "too long")
    asking = exchange(Retry(1.0, 2))
    ends = []
    now = START
    while asking.attempt(now):
        asking.refuse(too_long)
        asking.refuse(too_long)
        ends.append(asking.due - START)
        now = max(asking.due, now + 0.01)
    # It counts as one of the allowed attempts.
    assert ends == pytest.approx([0.0, 0.0, 1.0])

    asking = exchange(Retry(1.0, 3))
    assert asking.attempt(START)
    asking.refuse(too_long)
    assert asking.due == START
    assert asking.attempt(START + 0.01)
    assert asking.due == pytest.approx(START + 0.125)
    assert asking.attempt(asking.due)
    assert asking.due == pytest.approx(START + 0.375)
    assert not asking.may_reuse_port

    alone = exchange(Retry(1.0, 0))
    assert alone.attempt(START)
    alone.refuse(too_long)
    assert alone.due == START + 1.0


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (("127.0.0.1", 1234), "127.0.0.1:1234"),
        (("::1", 1234, 0, 0), "[::1]:1234"),
        ("/run/server", "/run/server"),
        (b"\0name", "@name"),
    ],
)
def test_timeout_message_has_the_attempts_time_and_address(address, shown):
    attempts, now = exchange(Retry(0.5, 3)), START
    while attempts.attempt(now):
        now = attempts.due
    text = f"no reply from {shown}: 4 attempts in 0.500 s"
    with pytest.raises(TimeoutError, match=f"^{re.escape(text)}$"):
        raise attempts.timed_out(address, now)


def test_timeout_message_uses_the_singular_for_one_attempt():
    attempts = exchange(Retry(0.5, 0))
    attempts.attempt(START)
    assert "1 attempt in" in str(attempts.timed_out(("127.0.0.1", 1), START))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "complaint"),
    [
        ((0,), {}, ValueError, "timeout must be a number of seconds greater than 0, .* not 0"),
        ((-1,), {}, ValueError, "timeout must be"),
        ((float("nan"),), {}, ValueError, "timeout must be"),
        ((float("inf"),), {}, ValueError, "timeout must be"),
        ((1e300,), {}, ValueError, "timeout must be"),
        ((None,), {}, TypeError, "timeout must be .* not None"),
        (("1",), {}, TypeError, "timeout must be"),
        ((1, -1), {}, ValueError, "retries must be an int, 0 or more, not -1"),
        ((1, 1.5), {}, ValueError, "retries must be"),
        ((1, None), {}, TypeError, "retries must be"),
        ((1,), {"backoff": 0.5}, ValueError, "backoff must be"),
        ((1,), {"jitter": 0.5}, ValueError, "jitter must be"),
        ((1,), {"jitter": -0.1}, ValueError, "jitter must be"),
    ],
)
def test_invalid_arguments_are_rejected_with_a_hint(arguments, options, error, complaint):
    with pytest.raises(error, match=f"^{complaint}"):
        Retry(*arguments, **options)


def test_huge_numbers_of_retries_are_limited_by_the_time():
    assert Retry(1.0, 10**9).count == 10  # 1 ms and 9 doublings are 512 ms, and 10 exceed 1 s
