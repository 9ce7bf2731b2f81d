"""How long a listing of a million keys takes, and how much memory.

    python tests/scale/million_keys.py FOLDER [--keys 1000000] [--page-s 0.06]

The store is simulated: what is measured is how the pages are asked for, and the work per key. A server on the
loopback interface answers ListObjectsV2 alone, each page after `--page-s`, about what S3 takes. One after the
other, a million keys are then 60 s and more. FOLDER stays empty.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

from phases import run_phases
from pydantic import SecretStr

from raybatch.sources.listing import list_files
from raybatch.store import StorageOptions
from raybatch.store.bucket import Bucket

PAGE = 1000
LAST = "\x7f"  # above every key's characters


def flat(number: int) -> str:
    return f"in/part-{number:07}.jsonl"


def in_folders(number: int) -> str:
    return f"in/{number // 1000:04}/{number % 1000:03}.jsonl"


class Listing(BaseHTTPRequestHandler):
    """ListObjectsV2 of made-up keys."""

    protocol_version = "HTTP/1.1"
    keys: ClassVar[list[str]] = []
    entries: ClassVar[list[str]] = []
    page_s: ClassVar[float] = 0

    def do_HEAD(self) -> None:  # the name that http.server calls
        self._answer(404, b"")

    def do_GET(self) -> None:
        time.sleep(self.page_s)
        asked = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        prefix = asked.get("prefix", "")
        after = max(asked.get("start-after", ""), asked.get("continuation-token", ""))
        at = max(bisect_left(self.keys, prefix), bisect_right(self.keys, after))
        end = bisect_left(self.keys, prefix + LAST)
        if asked.get("delimiter"):
            held, at, last = self._folders(prefix, at, end)
        else:
            stop = min(at + PAGE, end)
            held, last = "".join(self.entries[at:stop]), self.keys[stop - 1]
            at = stop
        more = f"<NextContinuationToken>{last}</NextContinuationToken>" if at < end else ""
        state = f"<IsTruncated>{str(at < end).lower()}</IsTruncated>{more}"
        self._answer(200, f"<ListBucketResult>{state}{held}</ListBucketResult>".encode())

    def _folders(self, prefix: str, start: int, end: int) -> tuple[str, int, str]:
        at, held, folder = start, [], ""
        while at < end and len(held) < PAGE:
            folder = prefix + self.keys[at][len(prefix) :].split("/")[0] + "/"
            held.append(f"<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>")
            at = bisect_left(self.keys, folder + LAST)
        return "".join(held), at, folder + "~"

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Not a line for each request."""


def _entry(number: int, key: str) -> str:
    about = f"<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;{number:032x}&quot;</ETag>"
    return f"<Contents><Key>{key}</Key>{about}<Size>1000000</Size></Contents>"


def serve(said: argparse.Namespace) -> None:
    """Print the port, and answer for ever."""
    name = {"flat": flat, "folders": in_folders}[said.serve]
    Listing.keys = [name(number) for number in range(said.keys)]
    Listing.entries = [_entry(number, key) for number, key in enumerate(Listing.keys)]
    Listing.page_s = said.page_s
    server = ThreadingHTTPServer(("127.0.0.1", 0), Listing)
    print(server.server_address[1], flush=True)  # noqa: T201
    server.serve_forever()


@contextmanager
def _server(said: argparse.Namespace, kind: str) -> Any:
    command = [sys.executable, __file__, str(said.folder), "--serve", kind]
    command += ["--keys", str(said.keys), "--page-s", str(said.page_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


def _listed(said: argparse.Namespace, kind: str, *, in_order: bool) -> Mapping[str, Any]:
    Bucket.in_order = lambda self: in_order  # type: ignore[method-assign]  # what S3 and GCS promise
    with _server(said, kind) as endpoint:
        key = SecretStr("any")
        storage = StorageOptions(endpoint=endpoint, access_key_id=key, secret_access_key=key)
        started = time.monotonic()
        files = list_files(["s3://bucket/in"], taken=None, storage=storage)
        return {"files": len(files), "listed_in_s": round(time.monotonic() - started, 1)}


def flat_in_order(said: argparse.Namespace) -> Mapping[str, Any]:
    return _listed(said, "flat", in_order=True)


def folders_in_order(said: argparse.Namespace) -> Mapping[str, Any]:
    return _listed(said, "folders", in_order=True)


def folders_without_order(said: argparse.Namespace) -> Mapping[str, Any]:
    return _listed(said, "folders", in_order=False)


def flat_without_order(said: argparse.Namespace) -> Mapping[str, Any]:
    return _listed(said, "flat", in_order=False)


PHASES = {
    "flat, in order": flat_in_order,
    "folders, in order": folders_in_order,
    "folders, without order": folders_without_order,
    "flat, without order": flat_without_order,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--page-s", type=float, default=0.06)
    parser.add_argument("--serve", choices=["flat", "folders"], help=argparse.SUPPRESS)
    known, _ = parser.parse_known_args()
    if known.serve:
        serve(known)
    else:
        run_phases(__file__, PHASES, parser, sys.argv[1:])
