"""The seeds of links and networks that were not given one."""

import sys
import threading

import pytest

from support import Call
from tomada._testing import seeds
from tomada.testing import network

THREADS, NETWORKS = 4, 2000


@pytest.mark.thread_unsafe(reason="it changes the interpreter's switch interval")
def test_threads_create_networks_at_once(monkeypatch):
    """Each gets one of the seeds that the test has, and none gets another's."""
    draw = seeds.of_test(1, "test")
    monkeypatch.setattr(seeds, "_of_test", draw)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        begin = threading.Barrier(THREADS)

        def create():
            begin.wait()
            return [network().seed for _ in range(NETWORKS)]

        calls = [Call(create) for _ in range(THREADS)]
        found = [seed for call in calls for seed in call.result()]
    finally:
        sys.setswitchinterval(interval)
    again = seeds.of_test(1, "test")
    assert sorted(found) == sorted(again() for _ in found)
