"""Requests to one place in an object store: bounded, sent again where that is safe, their errors in words.

obstore sends again by itself, with growing and random pauses, what failed with a 5xx or 429 or never reached
the server, and what timed out or lost its connection if that is safe by HTTP's rules. A conditional PUT is
not: it may have been applied. Here it is sent again as well, because its caller can tell: the same condition
then says that somebody's bytes are there, and the bytes say whose.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from raybatch.store.failures import translated, unsettled
from raybatch.store.remote import StorageOptions, gate, open_remote

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")

# A body of so many bytes is given more time, so that request_timeout_s can stay short for all others
LARGE_BYTES = 16 << 20
_LARGE_FACTOR = 10

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 15.0  # as obstore's own


@dataclass(frozen=True, kw_only=True)
class Requests:
    """Picklable. All of one process that go by the same options are bounded together by `max_requests`."""

    url: str
    options: StorageOptions

    def send(
        self,
        doing: str,
        action: Callable[[ObjectStore], T],
        *,
        requests: int = 1,
        size: int = 0,
    ) -> T:
        """`action(client)`, which sends up to `requests` at a time with bodies of `size` bytes at most.

        It is called again while it fails for reasons that pass, so it must bear being done twice. Raises
        `StoreError` "cannot {doing}: ...", and what `translated` lets through.
        """
        timeout_s = self.options.request_timeout_s * (_LARGE_FACTOR if size > LARGE_BYTES else 1)
        client = open_remote(self.url, self.options, timeout_s=timeout_s)
        pauses = Pauses(self.options)
        with translated(self.url, doing):
            while True:
                try:
                    with gate(self.options).enter(requests):
                        return action(client)
                except Exception as error:
                    if not unsettled(error) or not pauses.wait():
                        raise


class Pauses:
    """Pauses between attempts: growing, random so that clients do not come back together, and bounded.

    `uniform(low, high)` chooses each.
    """

    def __init__(
        self,
        options: StorageOptions,
        *,
        sleep: Callable[[float], object] = time.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._left = options.max_retries
        self._end = time.monotonic() + options.retry_timeout_s
        self._longest_s = FIRST_PAUSE_S
        self._sleep = sleep
        self._uniform = uniform

    def wait(self) -> bool:
        """Sleep; False, at once, when there should be no further attempt."""
        if self._left <= 0 or time.monotonic() >= self._end:
            return False
        self._sleep(self._uniform(0, self._longest_s))
        self._left -= 1
        self._longest_s = min(2 * self._longest_s, LONGEST_PAUSE_S)
        return True
