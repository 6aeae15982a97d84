"""Exceptions of workers: each kind is reported, and does not affect other workers."""

import errno
import os
import socket as std

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tomada
from serving import ask, server
from support import Call, eventually
from tomada._server import messages, slots, worker

pytestmark = pytest.mark.thread_unsafe(reason="it forks")

MODULE = """
import threading

class Strange(Exception):
    def __init__(self, first, second):
        super().__init__(first, second)
        self.lock = threading.Lock()

class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no text")
    __repr__ = __str__

class Last(BaseException):
    pass
"""

WIDE = "ção 日本 \U0001f600 " * 20_000


def strange():
    import only_the_worker_imports_this as module

    return module.Strange("one", object())


def mute():
    import only_the_worker_imports_this as module

    return module.Mute("x")


def last():
    import only_the_worker_imports_this as module

    return module.Last("the last one")


CASES = {
    "strange": (strange, RuntimeError, "only_the_worker_imports_this.Strange"),
    "mute": (mute, RuntimeError, "only_the_worker_imports_this.Mute"),
    "last": (last, RuntimeError, "only_the_worker_imports_this.Last: the last one"),
    "wide": (lambda: ValueError(WIDE), ValueError, "ção 日本"),
    "surrogates": (lambda: ValueError("\udcff" * 100_000), ValueError, "\udcff"),
    "os": (lambda: FileNotFoundError(2, "no", "name"), FileNotFoundError, r"no: 'name'"),
    "wide os": (lambda: OSError(5, WIDE, WIDE), OSError, r"\[Errno 5\] ção"),
    "key": (lambda: KeyError("name"), KeyError, "^'name'"),
    "group": (
        lambda: ExceptionGroup("several", [ValueError("one"), strange()]),
        RuntimeError,
        "ExceptionGroup: several",
    ),
    "unicode": (
        lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "why"),
        RuntimeError,
        "UnicodeDecodeError: .*why",
    ),
    "interrupt": (lambda: KeyboardInterrupt("x"), RuntimeError, "KeyboardInterrupt: x"),
    "stop": (lambda: StopIteration("x"), RuntimeError, "StopIteration"),
}


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "only_the_worker_imports_this.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)


def failing(make):
    def init():
        raise make()

    return init


@pytest.mark.parametrize("case", CASES)
def test_init_exceptions_of_any_kind_are_raised_by_start(case):
    make, kind, text = CASES[case]
    serving = server(lambda data, _: data, workers=2, init=failing(make))
    with pytest.raises(kind, match=text) as caught:
        serving.start()
    assert type(caught.value) is kind
    assert any("In the worker" in note for note in caught.value.__notes__)
    serving.stop()


@pytest.mark.parametrize("case", CASES)
def test_exceptions_of_a_new_worker_leave_the_others_alone(case, tmp_path):
    make = CASES[case][0]
    flag = tmp_path / "broken"

    def init():
        if flag.exists():
            os.close(os.open(tmp_path / "failed", os.O_CREAT | os.O_WRONLY))
            raise make()

    def tell(data, _):
        return b"%d" % os.getpid()

    with server(tell, workers=2, init=init) as serving:
        old = {ask(serving.address) for _ in range(20)}
        flag.touch()
        serving.replace_workers()
        eventually((tmp_path / "failed").exists)
        for _ in range(20):
            assert Call(ask, serving.address).result()
        assert old <= {ask(serving.address) for _ in range(200)} | old
        assert serving.ready.is_set()
        assert serving.stats().restarts == 0


def text():
    return st.text(st.characters(codec=None), max_size=50) | st.builds(
        lambda piece, times: piece * times,
        st.text(st.characters(codec=None), min_size=1, max_size=5),
        st.integers(1, 50_000),
    )


@given(text(), st.sampled_from([ValueError, LookupError, OSError, MemoryError]))
def test_text_of_any_length_fits_into_a_message(text, kind):
    failure = messages.Failure.of(kind(text))
    message = messages.pack("error", failure)
    assert len(message) <= messages.LARGEST_MESSAGE
    assert message.count(b"\n") == 1
    what, found, _ = messages.unpack(message)
    assert what == "error"
    error = found.exception()
    assert type(error) is kind
    assert text.startswith(str(error))


class Bad:
    """An object that raises when it is converted to text or to anything else."""

    def __init__(self, error):
        self._error = error

    def fail(self, *_):
        raise self._error

    __str__ = __repr__ = __index__ = __format__ = fail


class BadText(str):
    __slots__ = ()

    def __str__(self):
        raise SystemExit(3)

    __getitem__ = __len__ = __str__


class BadNumber(int):
    def __str__(self):
        raise SystemExit(3)

    __repr__ = __index__ = __int__ = __abs__ = __str__


def raising(base, **methods):
    """Make an exception of which some methods or attributes raise."""
    return type("Raising", (base,), methods)


RAISED = (ValueError("no"), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), RecursionError())


def unruly():
    for error in RAISED:
        bad = Bad(error)
        fail = bad.fail
        getter = property(fail)
        yield raising(Exception, __str__=fail)()
        yield raising(Exception, __module__=bad)()
        yield raising(Exception, __notes__=[bad])()
        yield raising(Exception, __notes__=getter)()
        yield raising(Exception, __cause__=getter)()
        yield raising(Exception, __class__=getter)()
        yield raising(KeyError, args=getter)("name")
        yield OSError(5, bad)
        yield OSError(bad, "text")
        yield OSError(5, "text", bad)
        yield OSError(5, "text", "name", None, bad)
        for name in ("errno", "strerror", "filename", "filename2"):
            yield raising(OSError, **{name: getter})(5, "text")
    for number in (10**5000, -(10**5000), 2**31, 2**63, BadNumber(5), True):
        yield OSError(number, "text")
    yield ValueError(BadText("text"))
    yield KeyError(BadText("text"))
    yield OSError(5, BadText("text"), BadText("name"))
    yield ValueError(10**5000)
    yield KeyError(10**5000)
    yield OSError(5, b"\xff", b"\xff")
    yield OSError(5, "x" * 10**6, "y" * 10**6, None, "z" * 10**6)


@pytest.mark.parametrize("error", [pytest.param(e, id=str(n)) for n, e in enumerate(unruly())])
def test_exception_with_parts_that_raise_fits_into_a_message(error):
    message = messages.pack("error", messages.Failure.of(error))
    assert len(message) <= messages.LARGEST_MESSAGE
    what, failure, _ = messages.unpack(message)
    assert what == "error"
    assert isinstance(failure.exception(), Exception)
    assert str(failure)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOENT, "no", "one"),
        OSError(errno.ENOENT, "no", "one", None, "two"),
        OSError(errno.ENOENT, "no", "", None, ""),
        OSError(errno.ECONNREFUSED, "no"),
        OSError("text"),
    ],
)
def test_os_error_keeps_its_parts(error):
    _, failure, _ = messages.unpack(messages.pack("error", messages.Failure.of(error)))
    found = failure.exception()
    for name in ("errno", "strerror", "filename", "filename2"):
        assert getattr(found, name) == getattr(error, name)
    assert type(found) is type(error)
    assert str(found) == str(error)


def test_exceptions_of_this_package_keep_their_type():
    from tomada._server.app import AppError

    failure = messages.Failure.of(AppError("no such module"))
    assert type(failure.exception()) is AppError


def test_functions_that_a_server_cannot_call_are_rejected():
    async def later():
        pass

    async def generate(data, _):
        yield data

    with pytest.raises(TypeError, match="handler is an async generator function: return"):
        tomada.Server(("127.0.0.1", 0), generate)
    with pytest.raises(TypeError, match="handler must be callable, not bytes"):
        tomada.Server(("127.0.0.1", 0), b"x")
    for name in ("init", "exit"):
        with pytest.raises(TypeError, match=f"{name} is an async function: pass a plain one, or"):
            tomada.Server(("127.0.0.1", 0), print, **{name: later})
        with pytest.raises(TypeError, match=f"{name} must be callable or None, not int"):
            tomada.Server(("127.0.0.1", 0), print, **{name: 3})


def test_worker_serves_only_when_the_supervisor_has_read_that_it_is_ready():
    """A worker that the supervisor does not know to be ready may be killed: it has no datagrams."""
    ours, theirs = std.socketpair()
    ours.setblocking(False)
    process = slots.Worker(0, ours, 0.0, 0)
    call = Call(worker._Teller(theirs).tell, "ready").until_it_waits()  # noqa: SLF001
    process.read()
    assert call.result() is True
    assert process.ready
    assert process.channel is None


def test_worker_whose_supervisor_has_died_does_not_serve():
    ours, theirs = std.socketpair()
    ours.close()
    assert worker._Teller(theirs).tell("ready") is False  # noqa: SLF001
