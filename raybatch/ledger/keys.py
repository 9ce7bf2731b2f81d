"""The names of everything below a sink's path. Numbers are padded, so that listings come in numeric order.

data/<epoch>-<n>.parquet                         what readers read; appears when an epoch is finalised
data/<column>=<value>/…/<epoch>-<n>.parquet      the same where the sink partitions; n counts over all folders
errors/<epoch>-<n>.parquet
_raybatch/plan/<epoch>.json                      create(): the frozen input of an epoch
_raybatch/parts/<epoch>/<thousand>/<unit>-<attempt>.<kind>.parquet   rows of one attempt; kind: ok, errors, …
_raybatch/units/<epoch>/<thousand>/<unit>.json   create(): the moment a unit is published
_raybatch/commit/<epoch>.json                    create(): the moment an epoch becomes visible

A folder holds a thousand units: as many as one request of a listing gives, so that a million of them are listed
by many requests at once, and no local folder grows beyond what filesystems like.
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

_RECORD = re.compile(r"(?:plan|commit)/(?P<epoch>\d{8})\.json$")
UNITS_PER_FOLDER = 1000

_UNIT = re.compile(r"units/(\d{8})/(\d{5})/(\d{8})\.json$")
_PART = re.compile(r"parts/(\d{8})/(\d{5})/(\d{8})-([^/.]+)\.[^/]+\.parquet$")
_FILE = re.compile(r"^(?:data/(?P<partition>(?:[^/=]+=[^/]+/)*)|errors/)(?P<epoch>\d{8})-\d{5,}\.parquet$")


def plan_key(epoch: int) -> str:
    return f"{PLANS}{epoch:08d}.json"


def commit_key(epoch: int) -> str:
    return f"{COMMITS}{epoch:08d}.json"


def units_prefix(epoch: int) -> str:
    return f"{UNITS}{epoch:08d}/"


def unit_folders(epoch: int, *, units: int) -> list[str]:
    """The folders that the records of so many units are in, in order."""
    return [_folder(units_prefix(epoch), unit) for unit in range(0, units, UNITS_PER_FOLDER)]


def unit_key(epoch: int, unit: int) -> str:
    return f"{_folder(units_prefix(epoch), unit)}{unit:08d}.json"


def parts_prefix(epoch: int) -> str:
    return f"{PARTS}{epoch:08d}/"


def part_key(epoch: int, unit: int, *, attempt: str, kind: str) -> str:
    return f"{_folder(parts_prefix(epoch), unit)}{unit:08d}-{attempt}.{kind}.parquet"


def file_key(folder: str, epoch: int, number: int, *, partition: str = "") -> str:
    """The `number`-th file of an epoch in `folder`, DATA or ERRORS; `partition` such as "lang=en"."""
    inside = f"{partition}/" if partition else ""
    return f"{folder}{inside}{epoch:08d}-{number:05d}.parquet"


def partition_of(key: str) -> str:
    """The partition that a data file's key names, such as "lang=en"; empty when there is none."""
    match = _FILE.match(key)
    return (match["partition"] or "").rstrip("/") if match else ""


def epoch_of(key: str) -> int | None:
    """The epoch that a plan's, commit's, data or error file's key names; None when it is no such key."""
    match = _RECORD.search(key) or _FILE.match(key)
    return int(match["epoch"]) if match else None


def unit_of(key: str) -> int | None:
    """The number of the unit that a unit record's key names; None when it is no such key."""
    match = _UNIT.search(key)
    return _unit(match[2], match[3]) if match else None


def part_of(key: str) -> tuple[int, int, str] | None:
    """Epoch, unit and attempt that a part's key names; None when it is no such key."""
    match = _PART.search(key)
    unit = _unit(match[2], match[3]) if match else None
    return (int(match[1]), unit, match[4]) if match and unit is not None else None


def _folder(prefix: str, unit: int) -> str:
    return f"{prefix}{unit // UNITS_PER_FOLDER:05d}/"


def _unit(thousand: str, unit: str) -> int | None:
    return int(unit) if int(unit) // UNITS_PER_FOLDER == int(thousand) else None
