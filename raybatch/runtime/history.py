"""The units of earlier epochs, for a source that has to know what it has taken."""

from __future__ import annotations

from collections.abc import Iterator

from raybatch.errors import LedgerError
from raybatch.ledger.ledger import Ledger
from raybatch.sources.base import UnitSpec
from raybatch.store.ahead import map_ahead

# Reading a small object takes some 30 ms: ten thousand plans are then ten seconds. Twice as many are held at once.
_THREADS = 32


def earlier_units(ledger: Ledger, *, epochs: int) -> Iterator[UnitSpec]:
    """The units that the first `epochs` epochs took from the source. Nothing is read before it is iterated.

    An epoch that ended where it began (the retry of error rows) took none. Raises `LedgerError` for a plan that
    is missing.
    """
    plans = map_ahead(ledger.plan, range(epochs), threads=_THREADS)
    for epoch, plan in enumerate(plans):
        if plan is None:
            raise LedgerError(
                f"the plan of epoch {epoch} is missing below {ledger.store.url}: restore it; without it nobody"
                " knows which input is done"
            )
        if plan.end != plan.start:
            yield from plan.units
