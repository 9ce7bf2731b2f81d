"""S3-compatible servers as processes of a test run, and buckets on them."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from servers.build import MINIO, VERSITYGW, built
from servers.client import Client

ACCESS_KEY = "raybatch-tests"
SECRET_KEY = "only-on-loopback"
REGION = "us-east-1"

# Generous: on a busy machine a server takes a second or two to answer
START_S = 60
_PORT_TRIES = 5
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How a server is started: its program, given an address and an empty folder for its data."""

    program: Path
    args: Sequence[str]
    env: Mapping[str, str]


def versitygw(address: str, folder: Path) -> Launch:
    """Versity S3 Gateway: objects are files of a POSIX filesystem, their metadata extended attributes."""
    data, beside = folder / "data", folder / "metadata"
    data.mkdir()
    beside.mkdir()
    # Some filesystems, such as tmpfs on Linux before 6.6, have no attributes of users: files beside, then
    metadata = [] if _has_attributes(data) else ["--sidecar", str(beside)]
    return Launch(
        program=built(VERSITYGW),
        args=["--port", address, "--region", REGION, "--quiet", "posix", *metadata, str(data)],
        env={"ROOT_ACCESS_KEY_ID": ACCESS_KEY, "ROOT_SECRET_ACCESS_KEY": SECRET_KEY},
    )


def minio(address: str, folder: Path) -> Launch:
    """MinIO with one drive."""
    return Launch(
        program=built(MINIO),
        args=["server", "--address", address, "--quiet", str(folder / "data")],
        env={
            "MINIO_ROOT_USER": ACCESS_KEY,
            "MINIO_ROOT_PASSWORD": SECRET_KEY,
            "MINIO_REGION": REGION,
            "MINIO_BROWSER": "off",
            "MINIO_UPDATE": "off",
            "MINIO_CI_CD": "on",  # a folder of the system's drive will do
        },
    )


Launcher = Callable[[str, Path], Launch]
LAUNCHERS: Mapping[str, Launcher] = {"versitygw": versitygw, "minio": minio}


class S3Server:
    """A server on a free port of the loopback interface, from construction until `stop`.

    It dies with the thread that made it, however that ends.
    """

    def __init__(self, name: str, folder: Path) -> None:
        """`folder` is made, and must not exist. Raises `BuildError`, or `AssertionError` if it does not start."""
        self.name = name
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes]
        for attempt in range(_PORT_TRIES):
            self.endpoint = f"http://127.0.0.1:{free_port()}"
            if self._start(folder / str(attempt)):
                return
        raise AssertionError(f"{name} does not start:\n{self._last_words()}")

    @property
    def client(self) -> Client:
        """A client with all rights."""
        return Client(endpoint=self.endpoint, access_key=ACCESS_KEY, secret_key=SECRET_KEY, region=REGION)

    def bucket(self) -> S3Bucket:
        """A new, empty bucket."""
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        self.client.create_bucket(name)
        return S3Bucket(name=name, endpoint=self.endpoint)

    def stop(self) -> None:
        """End it, and wait until it has ended. Its data stay."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)

    def _start(self, folder: Path) -> bool:
        """Start it and wait until it answers; False when it ends instead (its port was taken meanwhile)."""
        folder.mkdir(parents=True)
        launch = LAUNCHERS[self.name](self.endpoint.removeprefix("http://"), folder)
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [str(launch.program), *launch.args],
                env={"PATH": os.environ["PATH"], "HOME": str(folder), **launch.env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                preexec_fn=die_with_parent,
            )
        end = time.monotonic() + START_S
        while self.process.poll() is None:
            if self._answers():
                return True
            if time.monotonic() > end:
                self.stop()
                raise AssertionError(f"{self.name} does not answer after {START_S} s:\n{self._last_words()}")
            time.sleep(0.05)
        return False

    def _answers(self) -> bool:
        try:
            return self.client.request("GET", "").status == 200  # ListBuckets
        except OSError:
            return False

    def _last_words(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]


@dataclass(frozen=True, kw_only=True)
class S3Bucket:
    """A bucket as it is reached at an endpoint: the server's own, or that of a proxy before it."""

    name: str
    endpoint: str

    @property
    def url(self) -> str:
        return f"s3://{self.name}"

    @property
    def env(self) -> dict[str, str]:
        """What a process needs to reach it, in the variables that AWS's own tools read."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL": self.endpoint,
            # Not the credentials of whoever runs the tests, nor a question to the cloud's metadata service
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @cached_property
    def client(self) -> Client:
        return Client(endpoint=self.endpoint, access_key=ACCESS_KEY, secret_key=SECRET_KEY, region=REGION)

    @cached_property
    def filesystem(self) -> Any:
        """The bucket as pyarrow reads it, for a reader that shares no code with raybatch's stores."""
        files = pafs.S3FileSystem(
            access_key=ACCESS_KEY,
            secret_key=SECRET_KEY,
            region=REGION,
            endpoint_override=self.endpoint.removeprefix("http://"),
            scheme="http",
        )
        return pafs.SubTreeFileSystem(self.name, files)

    def at(self, endpoint: str) -> S3Bucket:
        """The same bucket, reached elsewhere."""
        return replace(self, endpoint=endpoint)

    def put(self, key: str, data: bytes) -> str:
        """Write an object; gives its ETag."""
        return self.client.put(f"{self.name}/{key}", data)

    def get(self, key: str) -> bytes:
        """Read an object."""
        return self.client.get(f"{self.name}/{key}")

    def delete(self, key: str) -> None:
        """Delete an object."""
        self.client.delete(f"{self.name}/{key}")

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """The size in bytes of each object whose key starts with `prefix`."""
        return {key: int(size) for key, size in self.client.listed(self.name, prefix).items()}

    def etags(self, prefix: str = "") -> dict[str, str]:
        """The ETag of each object whose key starts with `prefix`."""
        return self.client.listed(self.name, prefix, field="ETag")

    def objects(self, prefix: str = "") -> dict[str, bytes]:
        """The objects whose keys start with `prefix`, by the rest of the key."""
        return self.client.objects(self.name, prefix)

    def uploads(self) -> list[str]:
        """The keys of multipart uploads that were neither completed nor aborted."""
        return self.client.uploads(self.name)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _has_attributes(folder: Path) -> bool:
    try:
        os.setxattr(folder, "user.raybatch", b"")
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.EPERM):
            return False
        raise
    os.removexattr(folder, "user.raybatch")
    return True


def die_with_parent() -> None:
    # A test run that is killed leaves no server behind
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
