"""Harm real runs at random, for a given time, and count every row of every dataset at its end.

    python tests/faults/chaos.py [--minutes 10] [--seed N] [--stores local,s3] [--only CAMPAIGN] [--out DIR]

A campaign is a dataset of a few epochs, written by real `raybatch run` and `raybatch retry` processes, of which most
meet a fault (see chaos_faults.py). Faults are dealt like cards: on each store every kind comes up before one does
again, and one that found nothing to harm is tried again. After every command nobody may see a row twice, and no
published unit may change. Each epoch ends with runs in peace; then an oracle that shares no code with raybatch counts
every row once, and `raybatch audit` must agree.

Prints the seed, a line per campaign, and a table of what was injected. Exits 1 when anything is wrong; the folder
of that campaign stays, with its story, and the command that repeats it is printed. The same seed makes the same
campaigns; what their processes do at each moment is up to the machine.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent)]

from campaign import Campaign, describe  # noqa: E402
from chaos_faults import FAULTS, Fault  # noqa: E402

# Faults of one campaign, and how often one is tried that finds nothing to harm
HAND, TRIES = 5, 3
# What is left of the time where no other fault, and no other campaign, is begun: what has begun is counted yet
LAST_FAULT_S, LAST_CAMPAIGN_S = 60.0, 120.0
# A driver waits a minute for a GCS that may come back
FASTER = {"RAY_gcs_rpc_server_reconnect_timeout_s": "10"}


class Make(Protocol):
    """Makes a campaign on a store."""

    def __call__(self, folder: Path, choose: random.Random, *, engine: bool) -> Campaign: ...


@dataclass
class Tally:
    """What has happened in all campaigns."""

    tried: Counter[str] = field(default_factory=Counter)
    bitten: Counter[str] = field(default_factory=Counter)  # of those, the ones that found something to harm
    codes: Counter[str] = field(default_factory=Counter)
    stores: Counter[str] = field(default_factory=Counter)
    struck: Counter[str] = field(default_factory=Counter)
    sums: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


def main() -> int:
    options = arguments()
    os.environ.update(FASTER)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    end = time.monotonic() + options.minutes * 60
    tally = Tally()
    say(
        f"seed {options.seed}, {options.minutes:g} minutes, on {', '.join(options.stores)}; below {options.out}"
    )
    options.out.mkdir(parents=True)
    code = 0
    with stores(options) as makers:
        try:
            for number in [options.only] if options.only is not None else itertools.count():
                store = options.stores[number % len(options.stores)]
                one(number, store, makers[store], options, tally, end=end)
                if time.monotonic() > end - LAST_CAMPAIGN_S:
                    break
        except KeyboardInterrupt:
            code = 130
    report(tally, options)
    return 1 if tally.violations else code


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def arguments() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--stores", type=lambda text: text.split(","), default=["local", "s3"])
    parser.add_argument("--only", type=int, metavar="CAMPAIGN", help="repeat this one, whole")
    parser.add_argument("--out", type=lambda text: Path(text).resolve())
    options = parser.parse_args()
    # Nothing that an earlier call has left is touched: it may be a violation's
    folder = options.out or ROOT / "out" / "chaos" / str(options.seed)
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    options.out = next(path for path in itertools.chain([folder], numbered) if not path.exists())
    return options


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


def hand(number: int, store: str, *, seed: int) -> list[tuple[str, Fault]]:
    """The faults of a store's `number`-th campaign: the next ones of an endless deal of all kinds."""
    deal = random.Random(f"{seed}-{store}")
    kinds = sorted(name for name, fault in FAULTS.items() if store == "local" or not fault.disk)
    rounds = (deal.sample(kinds, len(kinds)) for _ in itertools.count())
    dealt = itertools.chain.from_iterable(rounds)
    return [(name, FAULTS[name]) for name in itertools.islice(dealt, number * HAND, (number + 1) * HAND)]


def one(
    number: int, store: str, make: Make, options: argparse.Namespace, tally: Tally, *, end: float
) -> None:
    """One campaign, to its end or to its first violation."""
    started, folder = time.monotonic(), options.out / f"{number:04d}-{store}"
    folder.mkdir()
    choose = random.Random(f"{options.seed}-{number}")
    dealt = hand(number // len(options.stores), store, seed=options.seed)
    engine = any(fault.engine for _, fault in dealt) or choose.random() < 0.4
    campaign = make(folder, choose, engine=engine)
    # One that is repeated is played to its end
    last = end - LAST_FAULT_S if options.only is None else float("inf")
    verdict = "cut off"
    try:
        for name, fault in dealt:
            play(campaign, name, fault, tally, last=last)
        campaign.finish()
        verdict = "every row once"
    except Exception as error:
        verdict = f"VIOLATION: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        campaign.note(traceback.format_exc())
        again = f"--seed {options.seed} --stores {','.join(options.stores)} --only {number}"
        tally.violations.append(
            f"campaign {number}: {verdict.partition(': ')[2]}\n      all of it: {folder}\n"
            f"      again:     python tests/faults/chaos.py {again}"
        )
    finally:
        campaign.close()
        count(campaign, store, tally)
        told = ", ".join(f"{name} {value}" for name, value in describe(campaign).items())
        say(f"{number:>4} {store:<6} {time.monotonic() - started:6.1f} s  {told}: {verdict}")
    if verdict == "every row once":
        shutil.rmtree(folder)


def play(campaign: Campaign, name: str, fault: Fault, tally: Tally, *, last: float) -> None:
    """One fault, until it bites; none is begun after `last`."""
    for _ in range(TRIES):
        if time.monotonic() > last:
            return
        campaign.prepare(fault.needs)
        campaign.note(f"-- {name}")
        before = campaign.harms
        fault.do(campaign)
        campaign.check_amid()
        tally.tried[name] += 1
        if campaign.harms > before:
            tally.bitten[name] += 1
            return
        campaign.note("missed")


def count(campaign: Campaign, store: str, tally: Tally) -> None:
    tally.codes.update(campaign.runs)
    tally.stores[store] += sum(campaign.runs.values())
    tally.struck.update(campaign.struck())
    tally.sums.update(
        {
            "campaigns": 1,
            "epochs": campaign.epochs,
            "of these, retries": campaign.retried,
            "input rows": campaign.rows,
            "parts that gc removed": campaign.collected,
        }
    )


def report(tally: Tally, options: argparse.Namespace) -> None:
    """The table at the end."""
    say(f"\n  {'fault':<44} {'bit':>5} {'missed':>7}")
    for name in FAULTS:
        say(f"  {name:<44} {tally.bitten[name]:>5} {tally.tried[name] - tally.bitten[name]:>7}")
    say(f"  {'':<44} {tally.bitten.total():>5} {(tally.tried - tally.bitten).total():>7}")
    for name, times in sorted(tally.struck.items()):
        say(f"  store: {name:<37} {times:>5}")
    codes = ", ".join(f"{code}: {number}" for code, number in sorted(tally.codes.items()))
    where = ", ".join(f"{store}: {number}" for store, number in sorted(tally.stores.items()))
    say(f"\n  {'commands':<22} {sum(tally.codes.values())} ({where})")
    say(f"  {'how they ended':<22} {codes}")
    for name, number in tally.sums.items():
        say(f"  {name:<22} {number}")
    say(f"  {'violations':<22} {len(tally.violations)}")
    for found in tally.violations:
        say(f"    {found}")
    say(f"  {'seed':<22} {options.seed}")


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
