"""Context managers for endpoints and clients, with errors that show how to use them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

NOT_OPEN = (
    "the endpoint is not open yet: write async with open_endpoint(...) as endpoint, or endpoint = "
    "await open_endpoint(...)"
)


class AsyncContextManager:
    """Raises an error in a ``with`` statement, because the object needs ``async with``."""

    _advice = "an endpoint needs async with: write async with open_endpoint(...) as endpoint"

    if not TYPE_CHECKING:  # hidden from type checkers, so they reject ``with``

        def __enter__(self) -> None:
            raise TypeError(self._advice)

        def __exit__(self, *_: object) -> None:
            pass  # never called, but ``with`` looks it up before it calls __enter__


class Closing(AsyncContextManager):
    """Calls :meth:`aclose` at the end of an ``async with`` block."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the object."""
        raise NotImplementedError


_Opened = TypeVar("_Opened", bound=Closing)


class Opening(AsyncContextManager, Generic[_Opened]):
    """Opens an endpoint when it is awaited, or entered as a context manager."""

    def __init__(self, opens: Callable[[], Coroutine[Any, Any, _Opened]]) -> None:
        self._opens = opens
        self._endpoint: _Opened | None = None

    def __await__(self) -> Generator[Any, Any, _Opened]:
        return self._opens().__await__()

    async def __aenter__(self) -> _Opened:
        self._endpoint = await self._opens()
        return self._endpoint

    async def __aexit__(self, *_: object) -> None:
        if self._endpoint is not None:
            await self._endpoint.aclose()

    if not TYPE_CHECKING:  # hidden from type checkers, so they reject these uses

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(f"{NOT_OPEN}, before endpoint.{name}")

        def __aiter__(self) -> Any:
            raise TypeError(f"{NOT_OPEN}, before async for data, address in endpoint")
