"""A program that interrupts a server's calls at each of their lines, and checks what is left.

    python interrupting.py OPERATION WORKERS ACTION FIRST STEP

OPERATION is what the main thread does: start, stop or serve. ACTION happens as if in a signal
handler: in the first round, at the line with number FIRST that the main thread runs in tomada; in
each further round, STEP lines later. ACTION is `raise` (an exception), `interrupt` (Ctrl-C), `stop`
(the server) or `storm`: a timer that starts later in each round, and whose handler raises
repeatedly. In the last round nothing happens, because the operation has fewer lines. The program
prints the number of rounds.

Requests that a ready server receives just before `stop` must be answered or refused.
"""

import ctypes
import faulthandler
import ipaddress
import os
import re
import signal
import socket as std
import sys
import threading
import time

import tomada
from lines import PACKAGE, AtLine

DEADLINE = 60
ROUNDS = 2000
SUBREAPER = 36
# More requests than workers, so that at least one has to wait.
REQUESTS = 3


class AlarmError(Exception):
    """The exception that a handler raises."""


class Storm:
    """A timer that fires after a number of 0.1 ms units, three times in total."""

    def __init__(self, number, _action):
        self._delay, self._rest = number / 1e4, 3
        self.is_over, self.is_armed = False, True

    def _alarm(self, _number, frame):
        while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
            frame = frame.f_back
        self._rest -= 1
        if frame is not None and self._rest >= 0 and self.is_armed:
            self.is_over = True
            raise AlarmError

    def __enter__(self):
        signal.signal(signal.SIGALRM, self._alarm)
        signal.setitimer(signal.ITIMER_REAL, self._delay, 3e-4)
        return self

    def __exit__(self, *_):
        signal.setitimer(signal.ITIMER_REAL, 0)


class Clients:
    """Clients of a server that send one request each."""

    def __init__(self):
        self._sockets = []

    def ask(self, server):
        """Send the requests if the server is ready."""
        if server.ready.is_set():
            for _ in range(REQUESTS):
                sock = std.socket(std.AF_INET, std.SOCK_DGRAM)
                self._sockets.append(sock)
                sock.settimeout(DEADLINE / 2)
                sock.connect(server.address)
                sock.send(b"request")

    def check(self, place):
        """Check that each request is answered or refused."""
        for sock in self._sockets:
            with sock:
                try:
                    sock.recv(100)
                except ConnectionRefusedError:
                    pass
                except TimeoutError:
                    raise AssertionError(f"a request is lost after stop() at {place}") from None


def handle(data, _):
    """Take long enough for other requests to queue up."""
    time.sleep(0.005)
    return data


def actions(server, clients):
    def raise_alarm():
        raise AlarmError

    def interrupt():
        raise KeyboardInterrupt

    def stop():
        clients.ask(server)
        server.stop()

    return {"raise": raise_alarm, "interrupt": interrupt, "stop": stop, "storm": None}


def operate(operation, server, interrupted):
    """Run the operation, and let the expected exceptions propagate."""
    if operation == "stop":
        server.start()
    if operation == "serve":
        # Stop the server eventually, in case nothing else does.
        threading.Thread(target=lambda: server.ready.wait(5) and server.stop(), daemon=True).start()
    calls = {"start": server.start, "stop": server.stop, "serve": server.serve_forever}
    try:
        with interrupted:
            calls[operation]()
    except (AlarmError, KeyboardInterrupt):
        assert interrupted.is_over
    except RuntimeError as error:
        if not re.search("stopped (while it was starting|before it was started)", str(error)):
            raise


def check_nothing_left(address):
    """Check that no process is left, the port is free, and the signal handlers are restored."""
    end = time.monotonic() + DEADLINE / 2
    while True:
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        assert time.monotonic() < end, "a process is left"
        time.sleep(0.001)
    while True:
        with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
            try:
                sock.bind(address)
                break
            except OSError:
                assert time.monotonic() < end, "the port is taken"
                time.sleep(0.001)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    assert signal.set_wakeup_fd(-1) == -1


def free_address():
    # Other programs take ports of 127.0.0.1 between the rounds.
    host = str(ipaddress.IPv4Address("127.1.0.0") + os.getpid())
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.bind((host, 0))
        return sock.getsockname()


def main(operation, workers, action, first, step):
    # This process adopts the orphaned children of its children.
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    address = free_address()
    number = first
    for rounds in range(ROUNDS):
        faulthandler.dump_traceback_later(DEADLINE, exit=True)
        server, clients = tomada.Server(address, handle, workers=workers), Clients()
        kind = Storm if action == "storm" else AtLine
        interrupted = kind(number, actions(server, clients)[action])
        operate(operation, server, interrupted)
        interrupted.is_armed = False
        if interrupted.is_over and operation == "start" and action != "storm":
            assert not server.ready.is_set() or action == "stop", interrupted.place
        server.stop()
        clients.check(getattr(interrupted, "place", ""))
        assert "stopped" in repr(server), number
        check_nothing_left(address)
        server.stop()
        if not interrupted.is_over:
            print(rounds + 1)
            return
        number += step
    raise AssertionError("it does not end")


if __name__ == "__main__":
    name, count, what, begin, every = sys.argv[1:]
    main(name, int(count), what, int(begin), int(every))
