"""Threads instead of processes, and the modules that the package imports."""

import threading

import pytest

from serving import Load, ask, client, server
from support import FREE, eventually, run


@pytest.mark.skipif(FREE, reason="this interpreter has no global lock")
def test_threads_are_rejected_with_a_global_lock():
    with pytest.raises(ValueError, match=r"free-threaded interpreter .* use workers"):
        server(lambda data, _: data, threads=2)


def tell_thread(data, _):
    return b"%d %s" % (threading.get_ident(), data)


@pytest.mark.usefixtures("unlocked")
def test_threads_share_one_port_and_their_counters():
    before = threading.active_count()
    with server(tell_thread, threads=3) as serving:
        found = set()
        eventually(lambda: found.add(ask(serving.address).split()[0]) or len(found) == 3)
        assert threading.active_count() == before + 4  # one of them starts and stops the others
        assert serving.stats().received >= 3
    assert threading.active_count() == before


@pytest.mark.usefixtures("unlocked")
def test_sendto_in_every_thread_is_sent_in_order():
    def handle(data, address):
        serving.sendto(b"1", address)
        return b"2"

    with server(handle, threads=3) as serving:
        for _ in range(20):
            with client(serving.address) as sock:
                sock.send(b"x")
                assert [sock.recv(10), sock.recv(10)] == [b"1", b"2"]


@pytest.mark.usefixtures("unlocked")
def test_stopping_threads_under_load_replies_to_or_refuses_every_request():
    with server(tell_thread, threads=2) as serving, Load(serving.address) as load:
        eventually(lambda: load.answered > 100)
        serving.stop()
        load.join()
    assert (load.lost, load.refused) == (0, 4)
    assert serving.stats().sent == load.answered


@pytest.mark.usefixtures("unlocked")
def test_init_that_raises_in_one_thread_ends_all():
    calls = iter([None, LookupError("the second one"), None])

    def init():
        error = next(calls)
        if error:
            raise error

    with pytest.raises(LookupError, match="the second one"):
        server(tell_thread, threads=3, init=init).start()


def test_importing_the_package_imports_only_modules_for_sockets():
    program = """
import sys
import tomada
from tomada import socket
print(*(name for name in ("asyncio", "logging", "multiprocessing", "signal", "tomada.server")
        if name in sys.modules))
assert tomada.Server.__module__ == "tomada.server"
assert tomada.serve and "Server" in dir(tomada)
try:
    tomada.nothing
except AttributeError as error:
    print(error)
from tomada import *
assert Server is tomada.Server
print(*(name for name in ("asyncio", "multiprocessing") if name in sys.modules))
"""
    assert run(program) == "\nmodule 'tomada' has no attribute 'nothing'\n\n"
