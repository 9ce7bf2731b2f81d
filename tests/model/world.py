"""Actors on one bucket, each on a thread of its own that stands before every store operation until told how
that operation ends. So one thread works at a time, and what happens follows from the orders alone."""

from __future__ import annotations

import datetime
import enum
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import story

from raybatch.errors import LostRaceError, SinkError, StoreError
from raybatch.ledger import gc, ledger, records
from raybatch.store.base import Store
from raybatch.store.memory import MemoryStore, Outcome

# SinkError: the storage failed while the ledger was being opened, which is before anything was started
STORAGE_FAILED = (StoreError, SinkError)
NOON = datetime.datetime(2026, 11, 1, 12, tzinfo=datetime.UTC)
PATIENCE_S = 60
WRITING = ("create", "put", "link", "delete")


class Order(enum.Enum):
    """How the operation that an actor stands before ends."""

    DONE = "done"
    LOST = "lost"  # fails, without effect
    UNSURE = "unsure"  # has its effect, and fails: the answer was lost
    REPEATED = "repeated"  # the answer was lost, and the client sent it again: told that the key exists
    KILL = "kill"  # the process is gone


OUTCOMES = {
    Order.DONE: Outcome.DONE,
    Order.LOST: Outcome.LOST,
    Order.UNSURE: Outcome.UNSURE,
    Order.REPEATED: Outcome.REPEATED,
}


class Killed(BaseException):
    """Not an Exception: nothing may catch it, as nothing catches SIGKILL."""


class Bucket(MemoryStore):
    """One client's view of the objects."""

    def __init__(self, world: World, hook: Callable[[str, str], Outcome]) -> None:
        super().__init__(world.objects, hook=hook)
        self.world = world

    def _write(self, operation: str, key: str, data: Callable[[], bytes]) -> bool:
        self.world.writes += 1
        return super()._write(operation, key, data)

    def put(self, key: str, data: bytes | memoryview) -> None:
        self.world.writes += 1
        super().put(key, data)

    def delete(self, key: str) -> None:
        self.world.writes += 1
        super().delete(key)


class World:
    """The bucket, the input that has arrived, and what time it is for whom."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.writes = 0  # operations that may have changed the objects
        self.rows = 2 * story.UNIT_ROWS
        self._names = 0
        self._clock = threading.local()
        clock = SimpleNamespace(UTC=datetime.UTC, datetime=SimpleNamespace(now=self._now))
        self._patches = [
            patch.object(records, "datetime", clock),
            # An actor has one thread: what is read ahead is read one after the other
            patch.object(ledger, "map_ahead", _one_by_one),
            patch.object(gc, "map_ahead", _one_by_one),
        ]
        for one in self._patches:
            one.start()

    def close(self) -> None:
        """Give everyone the real clock, and threads, again."""
        for one in self._patches:
            one.stop()

    def name(self) -> str:
        """A name of its own, as long as an attempt's id is."""
        self._names += 1
        return f"{self._names:012x}"

    def run(self, store: Store, run_id: str, *, continuous: bool = False) -> Any:
        """A whole run; see `story.run` and `story.run_continuously`."""
        tell = story.run_continuously if continuous else story.run
        return tell(store, run_id=run_id, arrived=lambda: self.rows, attempts=self.name)

    def _now(self, _zone: object) -> datetime.datetime:
        actor = getattr(self._clock, "actor", None)
        return NOON + datetime.timedelta(seconds=actor.clock_s if actor else 0)

    def enter(self, actor: Actor) -> None:
        """This thread is the actor's."""
        self._clock.actor = actor


def _one_by_one(function: Callable[[Any], Any], items: Iterable[Any], **_: Any) -> Iterator[Any]:
    return map(function, items)


class Actor:
    """Does `work` on a store of its own. `ended` says how, once it has: "complete", "failed" (the storage did,
    and it may be tried again), "lost" (another committed first), "killed"; all else is a violation."""

    def __init__(self, world: World, work: Callable[[Store], Any]) -> None:
        self.store = Bucket(world, self._park)
        self.world = world
        self.clock_s = 0.0
        self.ended: str | None = None
        self.result: Any = None
        self.about_to = ("", "")  # the operation that it stands before, and its key
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._parked: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._dead = False
        self._thread = threading.Thread(target=self._work, args=(work,), daemon=True)
        self._thread.start()
        self._parked.get(timeout=PATIENCE_S)

    def step(self, order: Order) -> None:
        """Let one operation end as ordered; it works on up to the next."""
        if self.ended is None:
            self.clock_s += 1
            self._orders.put(order)
            self._parked.get(timeout=PATIENCE_S)

    def writes(self, folder: str) -> bool:
        """Whether it stands before a write to a key in `folder`."""
        operation, key = self.about_to
        return self.ended is None and operation in WRITING and key.startswith(folder)

    def work_until_about_to_write(self, folder: str) -> None:
        """Let it work until it stands before such a write, or has ended."""
        self.step(Order.DONE)
        while self.ended is None and not self.writes(folder):
            self.step(Order.DONE)

    def _park(self, operation: str, key: str) -> Outcome:
        if self._dead:
            raise Killed
        self.about_to = (operation, key)
        self._parked.put(None)
        order = self._orders.get(timeout=PATIENCE_S)
        if order is Order.KILL:
            self._dead = True
            raise Killed
        return OUTCOMES[order]

    def _work(self, work: Callable[[Store], Any]) -> None:
        self.world.enter(self)
        try:
            self.result = work(self.store)
            self.ended = "complete"
        except Killed:
            self.ended = "killed"
        except STORAGE_FAILED:
            self.ended = "failed"
        except LostRaceError:
            self.ended = "lost"
        except BaseException as error:
            self.ended = f"broken: {type(error).__name__}: {error}"
        finally:
            self._parked.put(None)
