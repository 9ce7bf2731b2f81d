"""Places where a test can kill the process for good, one on each side of every durable step.

`RAYBATCH_FAILPOINT=after-part` ends the process with SIGKILL as it passes that point, `after-part@3` as it
passes it for the third time: no handler, no clean-up, no flush, as when a machine goes away.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter

FAILPOINTS = (
    "before-plan",
    "after-plan",
    "before-read",
    "after-read",
    "before-part",
    "after-part",
    "before-unit",
    "after-unit",
    "before-discard",  # a losing attempt is about to delete its own parts
    "before-verify",
    "before-file",  # a link or a merge into data/ or errors/
    "after-file",
    "before-commit",
    "after-commit",
    "before-acknowledge",
    "after-acknowledge",
)

_VARIABLE = "RAYBATCH_FAILPOINT"
_passed: Counter[str] = Counter()
_lock = threading.Lock()


def failpoint(name: str) -> None:
    """Die here if the environment says so. Counts passings per process, over all threads."""
    wanted = os.environ.get(_VARIABLE)
    if not wanted:
        return
    point, _, number = wanted.partition("@")
    if point != name:
        return
    with _lock:
        _passed[name] += 1
        if _passed[name] == int(number or 1):
            os.kill(os.getpid(), signal.SIGKILL)
