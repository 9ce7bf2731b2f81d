"""A pipeline whose input and output are in a bucket."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oracle import Id, downloaded, input_ids
from pipelines import Project
from servers.s3 import S3Bucket

OUTPUT = "out"
UNITS = f"{OUTPUT}/_raybatch/units/"


@dataclass
class S3Project(Project):
    """See `Project`. Its pipeline file and functions are in `folder`; its commands use a Ray of their own.

    Ray's workers inherit the credentials from the command that starts them; those of a cluster would not.
    """

    bucket: S3Bucket = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.env = {**self.bucket.env, **self.env}

    def lines(self, rows: Iterable[Any], *, file: str = "a.jsonl") -> Path:
        """Write values as JSON Lines, into the bucket too."""
        path = super().lines(rows, file=file)
        self.bucket.put(f"in/{file}", path.read_bytes())
        return path

    def write(self, *stages: Mapping[str, Any], **sections: Any) -> Path:
        """Write the pipeline file; `sections` as of `Project.write`."""
        places = {
            "source": {"type": "files", "path": f"{self.bucket.url}/in/*.jsonl"},
            "sink": {"type": "parquet", "path": f"{self.bucket.url}/{OUTPUT}"},
        }
        return super().write(*stages, **(places | sections))

    def published(self) -> list[str]:
        """The names of the unit records there are."""
        return [key.removeprefix(UNITS) for key in self.bucket.sizes(UNITS)]

    def fetched(self) -> Path:
        """A copy of the output as it is now, read by pyarrow's S3 client."""
        return downloaded(self.bucket.filesystem, OUTPUT, to=self.folder / "fetched" / uuid.uuid4().hex)

    def ids(self) -> Counter[Id]:
        """The id of each row of the input."""
        files = self.input.glob("*.jsonl")
        return input_ids(files, named=lambda path: f"{self.bucket.url}/in/{path.name}")

    def visible(self) -> dict[str, str]:
        """What is below data/ and errors/ now: the ETag of each object by its key."""
        return {
            key: etag
            for prefix in (f"{OUTPUT}/data/", f"{OUTPUT}/errors/")
            for key, etag in self.bucket.etags(prefix).items()
        }
