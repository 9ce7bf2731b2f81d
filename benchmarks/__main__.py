"""Measure all benchmarks, or those named: `python -m benchmarks [W4 W8 ...]`.

Each writes `benchmarks/results/<name>.json`; at the end there is one table of all that were measured.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import Result, save, table


def known() -> list[str]:
    """The names of all benchmarks, in order."""
    numbers = sorted(int(file.stem[1:]) for file in Path(__file__).parent.glob("w[0-9]*.py"))
    return [f"W{number}" for number in numbers]


def main(names: Sequence[str]) -> int:
    """Measure the benchmarks called `names` one after the other (none: all); gives the exit code."""
    wanted = [name.upper() for name in names] or known()
    unknown = [name for name in wanted if name not in known()]
    if unknown:
        print(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(known())}", file=sys.stderr)
        return 2
    results: list[Result] = []
    for name in wanted:
        started = time.monotonic()
        print(f"{name}:", file=sys.stderr)
        results.append(importlib.import_module(f"benchmarks.{name.lower()}").run())
        save(results[-1])
        print(f"  {name} took {time.monotonic() - started:.0f} s", file=sys.stderr)
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
