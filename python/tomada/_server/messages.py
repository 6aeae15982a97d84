"""Messages between workers and their supervisor, as text: exceptions may not be picklable.

A message is one line of JSON. For an exception it has the type's name, the text, the errno and
the traceback, truncated to the maximum size of a message.
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
    """An exception that was raised in another process."""

    module: str
    name: str
    text: str
    errno: int | None = None
    strerror: str | None = None
    filename: str | None = None
    traceback: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Describe an exception, even if its methods fail."""
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
        """Whether memory allocation failed."""
        return (self.module, self.name) == ("builtins", "MemoryError")

    def exception(self) -> BaseException:
        """Create an exception to raise in this process.

        It has the original type if that is a built-in type or one of this package that takes a
        text; otherwise it is a RuntimeError that names the type.
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
        except Exception:  # noqa: BLE001 - types with other arguments, such as UnicodeError
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
        # The end of a traceback is the most useful part; of other texts, the beginning.
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


def _text(error: BaseException) -> str:
    try:
        # str() of a KeyError is its key in quotes.
        if len(error.args) == 1 and type(error.args[0]) is str and type(error) is KeyError:
            return str(error.args[0])
        return _plain(str(error)) or ""
    except Exception:  # noqa: BLE001 - the exception's own method may fail
        return "(its text could not be had)"


def _traceback(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except Exception:  # noqa: BLE001 - as above
        return ""


def _plain(text: Any) -> str | None:
    """Convert an instance of a subclass of str to a plain str."""
    if text is None:
        return None
    return str.__str__(text) if isinstance(text, str) else str(text)
