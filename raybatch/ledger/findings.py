"""What an audit has looked at, and what it has found."""

from __future__ import annotations

from collections import Counter


class Findings:
    """Keeps the first violation of each invariant, the number of them, and notes."""

    def __init__(self) -> None:
        self.failed: dict[str, str] = {}
        self.violations: Counter[str] = Counter()
        self.notes: list[str] = []
        self._counted: dict[str, Counter[str]] = {}

    def fail(self, invariant: str, what: str) -> None:
        self.failed.setdefault(invariant, what)
        self.violations[invariant] += 1

    def note(self, what: str) -> None:
        self.notes.append(what)

    def count(self, invariant: str, things: str, number: int) -> None:
        self._counted.setdefault(invariant, Counter())[things] += number

    def add(self, later: Findings) -> None:
        """Take over what was found elsewhere, as found after what is here."""
        self.failed = later.failed | self.failed
        self.violations.update(later.violations)
        self.notes.extend(later.notes)
        for invariant, counted in later._counted.items():
            self._counted.setdefault(invariant, Counter()).update(counted)

    def checked(self, invariant: str) -> str:
        """Such as "3 plans, 2 commits"."""
        counted = self._counted.get(invariant, Counter()).items()
        return ", ".join(f"{n:,} {things if n != 1 else things[:-1]}" for things, n in counted)
