"""The units of earlier epochs, as a source is given them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from made import plan

from raybatch.errors import LedgerError
from raybatch.ledger import keys
from raybatch.ledger.ledger import Ledger
from raybatch.runtime.history import earlier_units
from raybatch.sources.base import UnitSpec
from raybatch.store import LocalStore


def ledger_of(folder: Path, *, epochs: int) -> Ledger:
    """A ledger with the plans of so many epochs, each of two units, but epoch 1, which retried those of epoch 0."""
    ledger = Ledger(LocalStore(str(folder)), "small")
    for epoch in range(epochs):
        units = [UnitSpec(range={"n": 10 * epoch + unit}) for unit in range(2)]
        start, end = {"after": epoch}, {"after": epoch + (epoch != 1)}
        made = replace(plan(units), epoch=epoch, start=start, end=end, plan_id="")
        ledger.create_plan(made)
    return ledger


def test_units_come_from_the_plans_of_all_epochs_but_those_that_took_nothing_new(tmp_path: Path) -> None:
    found = earlier_units(ledger_of(tmp_path, epochs=100), epochs=50)
    assert [unit.range["n"] for unit in found] == [10 * e + u for e in range(50) if e != 1 for u in range(2)]


def test_no_plan_is_read_before_somebody_asks(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, epochs=2)
    found = earlier_units(ledger, epochs=2)
    os.unlink(tmp_path / keys.plan_key(1))
    with pytest.raises(LedgerError, match=r"the plan of epoch 1 is missing.*restore it"):
        list(found)
