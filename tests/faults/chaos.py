"""Harm real runs at random, for a given time, and count every row of every dataset at its end.

    python tests/faults/chaos.py [--minutes 10] [--seed N] [--campaigns N] [--stores local,s3] [--out DIR]

A campaign is a dataset of a few epochs, written by real `raybatch run` processes, of which most meet a
fault (see chaos_faults.py); the last run of each epoch is left in peace and must complete. After every run nobody
may see a row twice, and no published unit may change; after every epoch an oracle that shares no code with
raybatch counts every row once, and `raybatch audit` must agree.

Prints the seed, a line per campaign, and a table of what was injected. Exits 1 when anything is wrong; the folder
of that campaign stays, with its story. The same seed chooses the same campaigns, as far as the machine lets it.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent)]

from campaign import Campaign, describe  # noqa: E402
from chaos_faults import EVERY, faults  # noqa: E402

Make = Callable[[Path, random.Random], Campaign]


@dataclass
class Tally:
    """What has happened in all campaigns."""

    faults: Counter[str] = field(default_factory=Counter)
    harmed: Counter[str] = field(default_factory=Counter)  # of those, the ones that found something to harm
    codes: Counter[str] = field(default_factory=Counter)
    stores: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    epochs: int = 0
    violations: list[str] = field(default_factory=list)


def main() -> int:
    options = arguments()
    end = time.monotonic() + options.minutes * 60
    tally = Tally()
    shutil.rmtree(options.out, ignore_errors=True)
    say(
        f"seed {options.seed}, {options.minutes:g} minutes, on {', '.join(options.stores)}; below {options.out}"
    )
    with stores(options) as makers:
        number = 0
        while number < (options.campaigns or sys.maxsize) and (time.monotonic() < end or number == 0):
            choose = random.Random(f"{options.seed}-{number}")
            store = options.stores[number % len(options.stores)]
            one(number, store, makers[store], choose, options, tally, end=end)
            number += 1
    report(tally, options)
    return 1 if tally.violations else 0


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def arguments() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--campaigns", type=int, default=0, help="at most so many")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--stores", type=lambda text: text.split(","), default=["local", "s3"])
    parser.add_argument("--out", type=lambda text: Path(text).resolve(), default=ROOT / "out" / "chaos")
    return parser.parse_args()


@contextmanager
def stores(options: argparse.Namespace) -> Iterator[dict[str, Make]]:
    """How a campaign is made, by the store that it writes to; servers run until the end."""
    makers: dict[str, Make] = {"local": Campaign}
    if "s3" not in options.stores:
        yield makers
        return
    from s3_campaign import s3_campaigns

    with s3_campaigns(options.out / "servers") as make:
        yield {**makers, "s3": make}


def one(
    number: int,
    store: str,
    make: Make,
    choose: random.Random,
    options: argparse.Namespace,
    tally: Tally,
    *,
    end: float,
) -> None:
    """One campaign, to its end or to its first violation."""
    started, folder = time.monotonic(), options.out / f"{number:04d}-{store}"
    folder.mkdir(parents=True)
    campaign = make(folder, choose)
    verdict = "every row once"
    try:
        for _ in range(choose.randint(1, 3)):
            epoch(campaign, store, tally, end=end)
            if time.monotonic() > end:
                break
    except Exception as error:
        first = str(error).split("\n")[0]
        verdict = f"VIOLATION: {first}"
        campaign.note(traceback.format_exc())
        tally.violations.append(f"campaign {number}, seed {options.seed}, all of it in {folder}: {first}")
    finally:
        campaign.close()
    tally.codes.update(campaign.runs)
    tally.stores[store] += sum(campaign.runs.values())
    tally.rows += campaign.rows
    if verdict == "every row once":
        shutil.rmtree(folder)
    told = ", ".join(f"{name} {value}" for name, value in describe(campaign).items())
    say(f"{number:>4} {store:<6} {time.monotonic() - started:6.1f} s  {told}: {verdict}")


def epoch(campaign: Campaign, store: str, tally: Tally, *, end: float) -> None:
    """Some runs that meet a fault each, with new input where there would be nothing to do; then those that finish
    it all."""
    known = faults(campaign, on_a_disk=store == "local")
    for _ in range(campaign.choose.randint(1, 4)):
        if time.monotonic() > end and campaign.rows:
            break
        name = campaign.choose.choice(sorted(known))
        if campaign.idle:
            campaign.add_input()
        campaign.note(name)
        tally.faults[name] += 1
        before = campaign.harms
        known[name](campaign)
        tally.harmed[name] += campaign.harms > before
        campaign.check_amid()
    campaign.note("in peace")
    campaign.finish()
    tally.epochs += 1


def report(tally: Tally, options: argparse.Namespace) -> None:
    """The table at the end."""
    say(f"\n  {'fault':<44} {'runs':>5} {'harmed':>7}")
    for name in sorted({*EVERY, *tally.faults}):
        say(f"  {name:<44} {tally.faults[name]:>5} {tally.harmed[name]:>7}")
    say(f"  {'':<44} {tally.faults.total():>5} {tally.harmed.total():>7}")
    codes = ", ".join(f"{code}: {count}" for code, count in sorted(tally.codes.items()))
    where = ", ".join(f"{store}: {count}" for store, count in sorted(tally.stores.items()))
    say(f"\n  commands   {sum(tally.codes.values())} ({where}); by exit code, or how they ended: {codes}")
    say(f"  epochs     {tally.epochs}\n  rows       {tally.rows}\n  violations {len(tally.violations)}")
    for found in tally.violations:
        say(f"    {found}")
    say(f"  seed       {options.seed}")


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
