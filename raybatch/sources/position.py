"""What the files source has taken so far: in full from the plans of earlier epochs, in short as its position.

A position is in every plan and commit, so it holds no list of files: a million files in ten thousand epochs would
be a million lines in each. Which files were taken stands in the plans already, each with its version. The
position says how many they are and the sum of their digests, by which plans that were lost or exchanged are
noticed, and the schema that later epochs keep.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from raybatch.errors import LedgerError
from raybatch.sources.base import JSON, UnitSpec

_DIGEST_BYTES = 16


@dataclass(frozen=True)
class Taken:
    """The files of all epochs before, `versions` by path, spelled by `spell` (a third of a dict's memory), and
    the schema that they fixed. `digest` is a sum, so that it does not depend on an order."""

    versions: dict[str, str] = field(default_factory=dict)
    digest: int = 0
    schema: pa.Schema | None = None

    @classmethod
    def of(cls, after: JSON | None, history: Iterable[UnitSpec]) -> Taken:
        """Read `history` if there is any. Raises `LedgerError` where it does not fit the position `after`."""
        if after is None:
            return cls()
        schema = _load_schema(after["schema"]) if after["schema"] else None
        taken = cls(schema=schema)
        if after["files"]:
            taken = taken.plus(history)
        found = taken.position(None)
        if (found["files"], found["digest"]) != (after["files"], after["digest"]):
            raise LedgerError(
                f"the plans of the epochs before name {len(taken.versions)} files, and the last commit counts"
                f" {after['files']}, or others: a plan was deleted or exchanged. Restore the plans; without"
                " them nobody knows which input is done"
            )
        return taken

    def plus(self, units: Iterable[UnitSpec]) -> Taken:
        """These and the files of `units`, each of which may have several."""
        versions, digest = dict(self.versions), self.digest
        last: object = None
        for unit in units:
            path, version = unit.range["path"], unit.range["version"]
            if path is last:
                continue  # units of one file come together, and share its name
            last = path
            if path not in versions:
                versions[path] = spell(version)
                digest += _digest(path, versions[path])
        return Taken(versions, digest % (1 << 8 * _DIGEST_BYTES), self.schema)

    def position(self, schema: pa.Schema | None) -> JSON:
        """As plans and commits have it."""
        text = base64.b64encode(schema.serialize()).decode("ascii") if schema is not None else None
        digest = self.digest.to_bytes(_DIGEST_BYTES).hex()
        return {"files": len(self.versions), "digest": digest, "schema": text}


def spell(version: JSON) -> str:
    """The one spelling of a version."""
    return json.dumps(dict(version), sort_keys=True, separators=(",", ":"))


def unspell(version: str) -> Mapping[str, object]:
    """The inverse of `spell`."""
    found: Mapping[str, object] = json.loads(version)
    return found


def _digest(path: str, version: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{path}\0{version}".encode()).digest()[:_DIGEST_BYTES])


def _load_schema(text: str) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))
