"""Messages between workers and their supervisor, as text: exceptions may not be picklable.

A message is one line of JSON. For an exception, it contains the type's name, the text, the errno
and the traceback, truncated to the maximum size of a message.
"""

from __future__ import annotations

import builtins
import json
import sys
import traceback
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

LARGEST_MESSAGE = 1 << 16
LARGEST_ERRNO = 1 << 31

UNKNOWN = "(its text could not be had)"


@dataclass(frozen=True)
class Failure:
    """An exception that was raised in another process."""

    module: str
    name: str
    text: str
    errno: int | None = None
    strerror: str | None = None
    filename: str | None = None
    filename2: str | None = None
    traceback: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Describe an exception, even if its own methods raise exceptions."""
        number = _errno(error)
        strerror, filename, filename2 = (
            None if number is None else _plain(error, name)
            for name in ("strerror", "filename", "filename2")
        )
        return cls(
            module=_plain(type(error), "__module__") or "?",
            name=_plain(type(error), "__qualname__") or "?",
            text=_text(error),
            errno=number,
            strerror=strerror,
            filename=filename,
            filename2=filename2,
            traceback=_traceback(error),
        )

    def __str__(self) -> str:
        name = self.name if self.module == "builtins" else f"{self.module}.{self.name}"
        return f"{name}: {self.text}" if self.text else name

    @property
    def is_memory(self) -> bool:
        """Whether memory allocation failed."""
        return (self.module, self.name) == ("builtins", "MemoryError")

    @property
    def is_for_users(self) -> bool:
        """Whether the message says everything, so that a traceback would not add anything."""
        return self.name == "AppError" and self.module.startswith("tomada.")

    def exception(self) -> BaseException:
        """Create an exception to raise in this process.

        It has the original type if that is built in or from this package, and can be created from
        a text. Otherwise it is a RuntimeError that names the type.
        """
        error = self._same() or RuntimeError(str(self))
        if self.traceback:
            error.add_note(f"In the worker:\n\n{self.traceback}")
        return error

    def _same(self) -> Exception | None:
        module: Any = builtins
        if self.module.partition(".")[0] == "tomada":
            module = sys.modules.get(self.module)
        elif self.module != "builtins":
            return None
        found = getattr(module, self.name, None)
        if not isinstance(found, type) or not issubclass(found, Exception):
            return None
        if issubclass(found, StopIteration | StopAsyncIteration | BaseExceptionGroup):
            return None
        try:
            if self.errno is None:
                error = found(self.text)
            elif self.filename is None:
                error = found(self.errno, self.strerror)
            else:
                names = (self.filename, None, self.filename2)
                error = found(
                    self.errno, self.strerror, *names[: 1 if self.filename2 is None else 3]
                )
        except Exception:  # noqa: BLE001 - the type takes other arguments, like UnicodeDecodeError
            return None
        return error


def pack(what: str, failure: Failure | None = None, **more: Any) -> bytes:
    """Encode a message."""
    fields: dict[str, Any] = {"what": what, **more}
    if failure is not None:
        fields["failure"] = asdict(failure)
    message = _dump(fields)
    while len(message) > LARGEST_MESSAGE and failure is not None:
        texts = {name: text for name, text in fields["failure"].items() if isinstance(text, str)}
        longest = max(texts, key=lambda name: len(texts[name]))
        text, half = texts[longest], len(texts[longest]) // 2
        # The most useful part of a traceback is its end; of other texts, the beginning.
        fields["failure"][longest] = text[-half:] if longest == "traceback" else text[:half]
        message = _dump(fields)
    return message


def unpack(message: bytes) -> tuple[str, Failure | None, dict[str, Any]]:
    """Decode a message: its kind, the failure in it (or None), and the other fields."""
    fields = json.loads(message)
    failure = fields.pop("failure", None)
    return fields.pop("what"), None if failure is None else Failure(**failure), fields


def _dump(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields).encode("ascii") + b"\n"


def _attempt(make: Callable[[], str | None]) -> str | None:
    """Call a function that runs an exception's own methods, which may raise anything."""
    try:
        return make()
    except BaseException:  # noqa: BLE001 - even SystemExit must not end the process here
        return UNKNOWN


def _text(error: BaseException) -> str:
    def make() -> str | None:
        # str() of a KeyError is the repr of its key, with quotes.
        if type(error) is KeyError and len(error.args) == 1 and type(error.args[0]) is str:
            return _exact(error.args[0])
        return _exact(str(error))

    return _attempt(make) or ""


def _traceback(error: BaseException) -> str:
    text = _attempt(lambda: "".join(traceback.format_exception(error))[-LARGEST_MESSAGE:])
    return "" if text is None or text == UNKNOWN else text


def _errno(error: BaseException) -> int | None:
    """Return the errno, if there is one in the kernel's range."""
    try:
        if isinstance(error, OSError) and isinstance(error.errno, int):
            number = int.__index__(error.errno)
            return number if abs(number) < LARGEST_ERRNO else None
    except BaseException:  # noqa: BLE001 - as above
        return None
    return None


def _plain(owner: object, name: str) -> str | None:
    """Return an attribute as text."""

    def make() -> str | None:
        value = getattr(owner, name)
        if value is None:
            return None
        return _exact(value if isinstance(value, str) else str(value))

    return _attempt(make)


def _exact(text: str) -> str:
    """Return an exact ``str``, not a subclass, truncated to the length of a message."""
    return str.__str__(text)[:LARGEST_MESSAGE]
