"""Whether an unfinished plan was made for the pipeline that is about to finish it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from raybatch.errors import DriftError

_WIDTH = 60


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A value in the fingerprint, when the plan was made and now. What is absent is None."""

    path: str  # such as stages[0].prompt
    planned: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.path}: {' -> '.join(_around_the_change(self.planned, self.now))}"


def differences(planned: Any, now: Any, *, path: str = "") -> list[Difference]:
    """How two JSON values differ, leaf by leaf.

    What is absent equals null: an option that a later release adds is no change.
    """
    if isinstance(planned, Mapping) and isinstance(now, Mapping):
        found = []
        for key in [*planned, *(k for k in now if k not in planned)]:
            at = f"{path}.{key}" if path else str(key)
            found += differences(planned.get(key), now.get(key), path=at)
        return found
    if isinstance(planned, (list, tuple)) and isinstance(now, (list, tuple)):
        pairs = enumerate(zip_longest(planned, now))
        return [d for i, (a, b) in pairs for d in differences(a, b, path=f"{path}[{i}]")]
    if planned == now and isinstance(planned, bool) == isinstance(now, bool):
        return []
    return [Difference(path=path, planned=planned, now=now)]


def drift_error(epoch: int, found: Sequence[Difference]) -> DriftError:
    """What to raise when the differences are not allowed."""
    lines = "\n".join(f"  {difference}" for difference in found)
    return DriftError(
        f"epoch {epoch} is unfinished, and the pipeline has changed since it was planned:\n{lines}\n"
        "Published rows came from the pipeline as it was. Choose: undo the change, and run again to finish"
        " the epoch (the next one, of new input or of error rows by `raybatch retry`, may then come from the"
        " changed pipeline); or finish it with the changed pipeline (--allow-drift: the commit records the"
        " differences); or start anew at another sink.path"
    )


def _around_the_change(planned: Any, now: Any) -> tuple[str, str]:
    """Both values as JSON, long ones cut to where they differ."""
    a, b = (json.dumps(v, ensure_ascii=False, sort_keys=True) for v in (planned, now))
    if max(len(a), len(b)) <= _WIDTH:
        return a, b
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    start = max(0, same - _WIDTH // 3)
    return _cut(a, start), _cut(b, start)


def _cut(text: str, start: int) -> str:
    end = start + _WIDTH
    return ("…" if start else "") + text[start:end] + ("…" if end < len(text) else "")
