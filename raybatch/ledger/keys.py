"""The names of everything below a sink's path. Numbers are padded, so that listings come in numeric order.

data/<epoch>-<n>.parquet                         what readers read; appears when an epoch is finalised
errors/<epoch>-<n>.parquet
_raybatch/plan/<epoch>.json                      create(): the frozen input of an epoch
_raybatch/parts/<epoch>/<unit>-<attempt>.<kind>.parquet   rows of one attempt; kind: ok, errors, dropped
_raybatch/units/<epoch>/<unit>.json              create(): the moment a unit is published
_raybatch/commit/<epoch>.json                    create(): the moment an epoch becomes visible
"""

from __future__ import annotations

import re

DATA = "data/"
ERRORS = "errors/"
ROOT = "_raybatch/"
PLANS = f"{ROOT}plan/"
PARTS = f"{ROOT}parts/"
UNITS = f"{ROOT}units/"
COMMITS = f"{ROOT}commit/"

_RECORD = re.compile(r"(?:plan|commit)/(\d{8})\.json$")
_UNIT = re.compile(r"units/(\d{8})/(\d{8})\.json$")
_FILE = re.compile(r"^(?:data|errors)/(\d{8})-\d{5}\.parquet$")


def plan_key(epoch: int) -> str:
    return f"{PLANS}{epoch:08d}.json"


def commit_key(epoch: int) -> str:
    return f"{COMMITS}{epoch:08d}.json"


def units_prefix(epoch: int) -> str:
    return f"{UNITS}{epoch:08d}/"


def unit_key(epoch: int, unit: int) -> str:
    return f"{units_prefix(epoch)}{unit:08d}.json"


def parts_prefix(epoch: int) -> str:
    return f"{PARTS}{epoch:08d}/"


def part_key(epoch: int, unit: int, *, attempt: str, kind: str) -> str:
    return f"{parts_prefix(epoch)}{unit:08d}-{attempt}.{kind}.parquet"


def file_key(folder: str, epoch: int, number: int) -> str:
    """The `number`-th file of an epoch in `folder`, DATA or ERRORS."""
    return f"{folder}{epoch:08d}-{number:05d}.parquet"


def epoch_of(key: str) -> int | None:
    """The epoch that a plan's, commit's, data or error file's key names; None when it is no such key."""
    match = _RECORD.search(key) or _FILE.match(key)
    return int(match[1]) if match else None


def unit_of(key: str) -> int | None:
    """The number of the unit that a unit record's key names; None when it is no such key."""
    match = _UNIT.search(key)
    return int(match[2]) if match else None
