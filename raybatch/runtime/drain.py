"""SIGTERM: units that have begun are finished and published, no others begin, for as long as a grace period.

Spot instances, Kubernetes and batch systems send SIGTERM some time before they kill. A unit can be minutes of
an engine's work, so what is nearly done is worth the wait.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


class _Sign:
    """An actor beside the driver: tells tasks, wherever they run, whether the run is being drained."""

    def __init__(self) -> None:
        self._up = False

    def put_up(self) -> None:
        self._up = True

    def is_up(self) -> bool:
        return self._up


@dataclass(frozen=True, kw_only=True)
class StopSign:
    """What travels with a unit's recipe. Holds only the actor's handle: picklable."""

    actor: Any

    def is_up(self) -> bool:
        """Whether a unit that has not begun should not. Asked on a worker; takes about a millisecond."""
        import ray

        return bool(ray.get(self.actor.is_up.remote()))


class Drain:
    """Started by the first SIGTERM; the second one, or the end of the grace period, interrupts the work."""

    def __init__(self, sign: StopSign, *, grace_s: float, say: Callable[[str], None]) -> None:
        self.sign = sign
        self.asked = False
        self._asked_at = 0.0
        self._grace_s = grace_s
        self._say = say
        self._wake = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="raybatch-drain", daemon=True)
        self._thread.start()

    def on_signal(self, _number: int, _frame: Any) -> None:
        """A handler runs between any two steps of the main thread, so all it does is to wake the other one."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked, self._asked_at = True, time.monotonic()
        self._wake.set()

    def heed(self) -> None:
        """For whoever does the work, between two pieces of it: raises `KeyboardInterrupt` once it was asked for."""
        if self.asked:
            raise KeyboardInterrupt

    def grace_left_s(self) -> float:
        """Seconds until the work is interrupted: all of the grace period before it was asked for."""
        gone = time.monotonic() - self._asked_at if self.asked else 0.0
        return max(0.0, self._grace_s - gone)

    def close(self) -> None:
        self._over.set()
        self._wake.set()
        self._thread.join()

    def _watch(self) -> None:
        self._wake.wait()
        if self._over.is_set():
            return
        self.sign.actor.put_up.remote()
        self._say(f"told to stop: finishing the units that have begun, for up to {self._grace_s:g} s")
        if not self._over.wait(self._grace_s):
            os.kill(os.getpid(), signal.SIGTERM)  # what a second SIGTERM does: `on_signal` raises


@contextmanager
def drained_on_sigterm(*, grace_s: float, say: Callable[[str], None]) -> Iterator[Drain]:
    """Within the block SIGTERM begins to drain, on the main thread (elsewhere signals are not ours to take).

    Whoever does the work calls `heed` when a piece of it is over. Needs a connection to Ray.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(_Sign).options(num_cpus=0, scheduling_strategy=here).remote()
    drain = Drain(StopSign(actor=actor), grace_s=grace_s, say=say)
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, drain.on_signal) if main else None
    try:
        yield drain
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
        drain.close()
        ray.kill(actor)
