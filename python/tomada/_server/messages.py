"""What workers and their supervisor tell: text, since an exception itself may not travel.

A message is one line of JSON. What it says of an exception is the name of its type, its text,
its errno and the traceback, cut to the bytes that a message may have.
"""

from __future__ import annotations

import builtins
import json
import sys
import traceback
from dataclasses import asdict, dataclass
from typing import Any

LARGEST_MESSAGE = 1 << 16


@dataclass(frozen=True)
class Failure:
    """An exception of another process."""

    module: str
    name: str
    text: str
    errno: int | None = None
    strerror: str | None = None
    filename: str | None = None
    traceback: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Describe an exception, whatever its methods do."""
        is_os = isinstance(error, OSError) and isinstance(error.errno, int)
        return cls(
            module=str(type(error).__module__),
            name=type(error).__qualname__,
            text=_text(error),
            errno=error.errno if isinstance(error, OSError) and is_os else None,
            strerror=_plain(error.strerror) if isinstance(error, OSError) and is_os else None,
            filename=_plain(error.filename) if isinstance(error, OSError) and is_os else None,
            traceback=_traceback(error),
        )

    def __str__(self) -> str:
        name = self.name if self.module == "builtins" else f"{self.module}.{self.name}"
        return f"{name}: {self.text}" if self.text else name

    @property
    def is_memory(self) -> bool:
        """Whether there was no memory."""
        return (self.module, self.name) == ("builtins", "MemoryError")

    def exception(self) -> BaseException:
        """Make an exception to raise here.

        One of Python's own, or of this package, that a text makes; otherwise a RuntimeError that
        names the type.
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
                error = found(self.errno, self.strerror, self.filename)
        except Exception:  # noqa: BLE001 - one that takes other arguments, such as UnicodeError's
            return None
        return error


def pack(what: str, failure: Failure | None = None, **more: Any) -> bytes:
    """Make a message."""
    fields: dict[str, Any] = {"what": what, **more}
    if failure is not None:
        fields["failure"] = asdict(failure)
    message = _dump(fields)
    while len(message) > LARGEST_MESSAGE and failure is not None:
        texts = {name: text for name, text in fields["failure"].items() if isinstance(text, str)}
        longest = max(texts, key=lambda name: len(texts[name]))
        text, half = texts[longest], len(texts[longest]) // 2
        # A traceback's end says most, other texts' beginning.
        fields["failure"][longest] = text[-half:] if longest == "traceback" else text[:half]
        message = _dump(fields)
    return message


def unpack(message: bytes) -> tuple[str, Failure | None, dict[str, Any]]:
    """Take a message apart: what it says, the failure it tells of, and the rest."""
    fields = json.loads(message)
    failure = fields.pop("failure", None)
    return fields.pop("what"), None if failure is None else Failure(**failure), fields


def _dump(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields).encode("ascii") + b"\n"


def _text(error: BaseException) -> str:
    try:
        # A KeyError's own text is that of the key with quotes around it.
        if len(error.args) == 1 and type(error.args[0]) is str and type(error) is KeyError:
            return str(error.args[0])
        return _plain(str(error)) or ""
    except Exception:  # noqa: BLE001 - the exception's own method
        return "(its text could not be had)"


def _traceback(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except Exception:  # noqa: BLE001 - as above
        return ""


def _plain(text: Any) -> str | None:
    """Return a str that is of no subclass."""
    if text is None:
        return None
    return str.__str__(text) if isinstance(text, str) else str(text)
