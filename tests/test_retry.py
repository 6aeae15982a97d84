"""The schedule of a request's attempts."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tomada._retry import SHORTEST_WAIT, Attempts, Retry

RETRIES = st.builds(
    Retry,
    st.floats(1e-4, 1e4),
    st.integers(0, 40),
    backoff=st.floats(1, 10),
    jitter=st.floats(0, 0.49),
)


class Clock:
    """A clock that stands still unless told to go on."""

    def __init__(self, now=1000.0):
        self.now = now

    def __call__(self):
        return self.now


def moments(retry, clock, uniform):
    """Make all attempts, each as soon as the wait before it is over; return where they end."""
    ends = []
    for until in retry.start(clock, uniform):
        ends.append(until - 1000.0)
        clock.now = until
    return ends


def test_the_waits_double_and_fill_the_timeout():
    ends = moments(Retry(1.5, 3, jitter=0), Clock(), lambda *_: 0.0)
    assert ends == pytest.approx([0.1, 0.3, 0.7, 1.5])


def test_a_backoff_of_1_divides_the_time_evenly():
    ends = moments(Retry(1.0, 3, backoff=1, jitter=0), Clock(), lambda *_: 0.0)
    assert ends == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_no_retries_are_one_attempt_for_the_whole_time():
    assert moments(Retry(2.0, 0), Clock(), lambda *_: 0.0) == [2.0]


@given(RETRIES, st.data())
def test_attempts_follow_each_other_up_to_the_deadline(retry, data):
    def uniform(low, high):
        return data.draw(st.floats(low, high))

    ends = moments(retry, Clock(), uniform)
    assert ends[-1] == pytest.approx(retry.timeout)
    assert all(one < other for one, other in itertools.pairwise([0.0, *ends]))


@given(RETRIES, st.data())
def test_all_attempts_are_made_where_the_time_allows(retry, data):
    def uniform(low, high):
        return data.draw(st.floats(low, high))

    most = retry.retries + 1
    made = len(moments(retry, Clock(), uniform))
    shares = sum(retry.backoff**number for number in range(made + (made < most)))
    if made < most:
        assert retry.timeout / shares < SHORTEST_WAIT * (1 + 1e-9)
    else:
        assert made == 1 or retry.timeout / shares >= SHORTEST_WAIT * (1 - 1e-9)


@given(RETRIES, st.data())
def test_jitter_moves_an_attempt_by_its_share_of_the_wait(retry, data):
    def uniform(low, high):
        return data.draw(st.floats(low, high))

    steady = Retry(retry.timeout, retry.retries, backoff=retry.backoff, jitter=0)
    due = moments(steady, Clock(), lambda *_: 0.0)
    moved = moments(retry, Clock(), uniform)
    assert len(due) == len(moved)
    waits = [end - start for start, end in itertools.pairwise([0.0, *due])]
    for one, other, wait in zip(due, moved, waits, strict=True):
        assert abs(one - other) <= retry.jitter * wait + SHORTEST_WAIT


def test_a_process_that_was_held_up_waits_after_each_attempt_still():
    clock = Clock()
    attempts = Retry(1.0, 3, jitter=0).start(clock)
    next(attempts)
    clock.now += 0.9  # the second and the third attempt were due long ago
    for _ in range(2):
        assert next(attempts) >= clock.now + SHORTEST_WAIT
    assert next(attempts) == attempts.deadline


def test_no_attempt_begins_after_the_deadline():
    clock = Clock()
    attempts = Retry(1.0, 3).start(clock)
    next(attempts)
    clock.now += 1.0
    assert list(attempts) == []
    assert attempts.made == 1


def test_draws_differ_without_being_asked_to():
    ends = {next(Retry(1.0, 3).start(Clock())) for _ in range(50)}
    assert len(ends) > 1


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (("127.0.0.1", 1234), "127.0.0.1:1234"),
        (("::1", 1234, 0, 0), "[::1]:1234"),
        ("/run/server", "/run/server"),
        (b"\0name", "@name"),
    ],
)
def test_the_exception_says_how_many_attempts_in_how_long_to_whom(address, shown):
    clock = Clock()
    attempts = Retry(0.5, 3).start(clock)
    for until in attempts:
        clock.now = until
    text = f"no reply from {shown}: 4 attempts in 0.500 s"
    with pytest.raises(TimeoutError, match=f"^{re.escape(text)}$"):
        raise attempts.timed_out(address)


def test_one_attempt_is_no_plural():
    attempts = Retry(0.5, 0).start(Clock())
    next(attempts)
    assert "1 attempt in" in str(attempts.timed_out(("127.0.0.1", 1)))


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
def test_bad_arguments_are_refused_with_what_would_do(arguments, options, error, complaint):
    with pytest.raises(error, match=f"^{complaint}"):
        Retry(*arguments, **options)


def test_huge_numbers_of_retries_are_as_many_as_the_time_allows():
    assert Retry(1.0, 10**9).count == 9  # 1 ms and 8 doublings are 511 ms, and 9 too many
    assert isinstance(Retry(1.0, 10**9).start(), Attempts)
