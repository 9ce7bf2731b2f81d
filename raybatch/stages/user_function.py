"""Calls a user's function, plain or async, and keeps apart what it returns and what it raises."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from raybatch.stages.functions import message_of
from raybatch.stages.row_error import RowError


@dataclass(frozen=True)
class Raised:
    """What the function raised for one input."""

    error: BaseException
    base_dir: str

    def as_row_error(self) -> RowError:
        """Its type is the exception's class, its message says where in the user's code it came from."""
        return RowError(type(self.error).__name__, message_of(self.error, self.base_dir))


class UserFunction:
    """A function that was loaded. Async ones share one event loop from the first call until `close`, so that
    they may keep clients; `max_concurrency` calls are then in flight."""

    def __init__(self, function: Callable[..., Any], *, base_dir: str, max_concurrency: int) -> None:
        self._function = function
        self._base_dir = base_dir
        self._max_concurrency = max_concurrency
        self._is_async = _is_async(function)
        self._runner: asyncio.Runner | None = None

    def on_each(self, inputs: Sequence[Any]) -> list[Any]:
        """What it returns for each, or a `Raised`. Generators are run to their end, into lists."""
        if not self._is_async:
            return [self._one(value) for value in inputs]
        if self._runner is None:
            self._runner = asyncio.Runner()
        found: list[Any] = self._runner.run(self._all_async(inputs))
        return found

    def close(self) -> None:
        """Call the object's own `close`, if it has one, and end the event loop."""
        close = getattr(self._function, "close", None)
        try:
            if callable(close) and inspect.iscoroutinefunction(close):
                (self._runner or asyncio.Runner()).run(close())
            elif callable(close):
                close()
        finally:
            if self._runner is not None:
                self._runner.close()
                self._runner = None

    def _one(self, value: Any) -> Any:
        try:
            found = self._function(value)
            return list(found) if inspect.isgenerator(found) else found
        # SystemExit: a function that calls exit() must not take the worker along
        except (Exception, SystemExit) as error:
            return Raised(error, self._base_dir)

    async def _all_async(self, inputs: Sequence[Any]) -> list[Any]:
        found: list[Any] = [None] * len(inputs)
        todo = iter(enumerate(inputs))

        async def work() -> None:
            for position, value in todo:
                found[position] = await self._one_async(value)

        await asyncio.gather(*(work() for _ in range(min(self._max_concurrency, len(inputs)))))
        return found

    async def _one_async(self, value: Any) -> Any:
        try:
            pending = self._function(value)
            return [row async for row in pending] if inspect.isasyncgen(pending) else await pending
        except (Exception, SystemExit) as error:
            return Raised(error, self._base_dir)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # it is us who are cancelled, not something in there
                raise
            return Raised(error, self._base_dir)


def _is_async(function: Callable[..., Any]) -> bool:
    plain = function
    while isinstance(plain, functools.partial):
        plain = plain.func
    called = plain if inspect.isroutine(plain) else type(plain).__call__
    return inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called)
