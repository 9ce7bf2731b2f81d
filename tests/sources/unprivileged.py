"""Root may read everything, so a test of permissions becomes somebody else for a moment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_NOBODY = 65534


@contextmanager
def without_privileges() -> Iterator[None]:
    """As a user who owns nothing; in a process that is not root's, as itself."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
