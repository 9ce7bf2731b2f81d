"""Azurite, Microsoft's emulator of Azure Blob Storage, as a process of a test run.

A package of npm at a pinned version, installed once below `.cache/servers`, like the programs of `build.py`.
"""

from __future__ import annotations

import base64
import datetime
import fcntl
import hashlib
import hmac
import http.client
import shutil
import socket
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from servers.build import BuildError, folder
from servers.s3 import START_S, die_with_parent, free_port

VERSION = "3.35.0"

# Azurite's own, documented and always the same
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_API = "2021-08-06"

NO_NPM = "the tests install Azurite with npm, and there is no `npm` on PATH: install Node.js 20 or newer"


def installed() -> Path:
    """The program, installed first if this version never was. Raises `BuildError`. Seconds; 190 MB."""
    kept = folder() / f"azurite-{VERSION}"
    program = kept / "node_modules" / ".bin" / "azurite-blob"
    folder().mkdir(parents=True, exist_ok=True)
    with open(folder() / "azurite.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            _install(kept)
    return program


def _install(kept: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise BuildError(NO_NPM)
    shutil.rmtree(kept, ignore_errors=True)  # of an installation that was cut off
    kept.mkdir()
    package = f"azurite@{VERSION}"
    command = [npm, "install", "--no-audit", "--no-fund", "--omit=dev", "--omit=optional", package]
    done = subprocess.run(command, cwd=kept, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"`{' '.join(command)}` failed:\n{done.stderr.strip()[-2000:]}")


@dataclass(frozen=True, kw_only=True)
class Container:
    """A container on it; `endpoint` has the account in its path, as Azurite wants it."""

    name: str
    endpoint: str


class Azurite:
    """The emulator on a free port of the loopback interface, from construction until `stop`; in memory."""

    def __init__(self, folder: Path) -> None:
        """`folder` is made, and must not exist."""
        folder.mkdir()
        self.port = free_port()
        self.log = folder / "log"
        options = ["--blobHost", "127.0.0.1", "--blobPort", str(self.port), "--inMemoryPersistence"]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                # New clients, old emulator; and nothing is told to Microsoft
                [str(installed()), *options, "--silent", "--skipApiVersionCheck", "--disableTelemetry"],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        end = time.monotonic() + START_S
        while not self._answers():
            words = self.log.read_text(errors="replace")[-2000:]
            assert self.process.poll() is None, f"azurite has ended:\n{words}"
            assert time.monotonic() < end, f"azurite does not answer:\n{words}"
            time.sleep(0.05)

    def container(self) -> Container:
        """A new, empty container."""
        name = f"container-{uuid.uuid4().hex[:12]}"
        moment = f"{datetime.datetime.now(datetime.UTC):%a, %d %b %Y %H:%M:%S GMT}"
        path = f"/{ACCOUNT}/{name}"
        headers = {"x-ms-date": moment, "x-ms-version": _API}
        lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
        text = "PUT" + "\n" * 12 + f"{lines}/{ACCOUNT}{path}\nrestype:container"
        signature = hmac.digest(base64.b64decode(ACCOUNT_KEY), text.encode(), hashlib.sha256)
        headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(signature).decode()}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("PUT", f"{path}?restype=container", headers=headers)
        answer = connection.getresponse()
        assert answer.status == 201, answer.read()
        connection.close()
        return Container(name=name, endpoint=f"http://127.0.0.1:{self.port}/{ACCOUNT}")

    def stop(self) -> None:
        """End it, and wait until it has ended."""
        self.process.terminate()
        self.process.wait(10)

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True


def main() -> int:
    try:
        installed()
    except BuildError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
