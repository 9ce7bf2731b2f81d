"""What is particular to a filesystem: processes that race or die, users, full disks."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from raybatch.errors import SinkError, StoreError
from raybatch.store import LocalStore, open_store
from small_run import in_child, outcome_of, wait_until

NOBODY = 65534


def _files(folder: Path) -> list[str]:
    return sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user can reach; pytest's own is closed to all but one."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/data/out", "/data/out"),
        ("/data/out/", "/data/out"),
        ("file:///data/out", "/data/out"),
        ("file://localhost/data/out", "/data/out"),
    ],
)
def test_paths_and_file_urls_open_a_local_store(url: str, path: str) -> None:
    assert open_store(url).url == path


@pytest.mark.parametrize("url", ["hdfs://n/k", "ftp://host/k", "file://relative/path"])
def test_another_scheme_is_a_sink_error_that_says_what_is_possible(url: str) -> None:
    with pytest.raises(SinkError, match="file:///path") as caught:
        open_store(url)
    assert url in str(caught.value)


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../x", "a//b", "a/./b", "a/"])
def test_a_key_cannot_leave_the_root(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="not a key"):
        LocalStore(str(tmp_path)).create(key, b"")


def test_a_store_travels_by_pickle(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    store.create("a/b", b"x")
    copy = pickle.loads(pickle.dumps(store))
    assert (copy.url, copy.read("a/b"), copy.create("a/c", b"")) == (store.url, b"x", True)


def test_of_many_processes_exactly_one_creates_each_key(tmp_path: Path) -> None:
    store, keys = LocalStore(str(tmp_path / "out")), [f"units/{n}.json" for n in range(30)]
    start_read, start_write = os.pipe()

    def race(name: str) -> None:
        os.close(start_write)
        os.read(start_read, 1)  # ends for all when the parent closes its end
        won = [key for key in keys if store.create(key, name.encode())]
        (tmp_path / name).write_text("\n".join(won))

    names = [f"racer-{n}" for n in range(6)]
    children = [in_child(lambda name=name: race(name)) for name in names]
    os.close(start_read)
    os.close(start_write)
    assert [outcome_of(child) for child in children] == [0] * len(names)
    won = [(key, name) for name in names for key in (tmp_path / name).read_text().split()]
    assert sorted(won) == sorted((key, store.read(key).decode()) for key in keys)


@pytest.mark.parametrize("kill_after", [1, 5, 20])
def test_a_killed_writer_leaves_whole_objects_and_only_those(tmp_path: Path, kill_after: int) -> None:
    store = LocalStore(str(tmp_path))

    def write() -> None:
        for number in range(100_000):
            store.create(f"parts/{number:06d}", bytes([number % 256]) * 300_000)

    child = in_child(write)
    wait_until(lambda: len(list(store.list("parts/"))) >= kill_after)
    os.kill(child, signal.SIGKILL)
    assert outcome_of(child) == -signal.SIGKILL
    found = list(store.list("parts/"))
    assert [entry.key for entry in found] == [f"parts/{n:06d}" for n in range(len(found))]
    assert {entry.size for entry in found} == {300_000}
    assert store.create(f"parts/{len(found):06d}", b"") is True


def test_a_folder_that_vanishes_is_made_again(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path / "out"))
    store.create("parts/0/a", b"")
    (tmp_path / "out/parts/0/a").unlink()
    (tmp_path / "out/parts/0").rmdir()
    (tmp_path / "out/_tmp").rmdir()
    assert store.create("parts/0/b", b"") is True


def test_what_is_written_can_be_read_by_those_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        LocalStore(str(tmp_path)).create("data/a", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "data/a").stat().st_mode) == 0o640


def _message_of(action: Callable[[], object], *, user: int | None = None) -> str:
    """The message of the `StoreError` that `action` raises in a process of its own; "" if it raises none."""
    written, told = os.pipe()

    def act() -> None:
        try:
            action()
        except StoreError as error:
            os.write(told, str(error).encode())

    child = in_child(act, user=user)
    os.close(told)
    assert outcome_of(child) == 0
    with open(written, "rb") as file:
        return file.read().decode()


def test_a_folder_that_may_not_be_written_is_named_with_the_user(public: Path) -> None:
    folder = public / "out"
    folder.mkdir(mode=0o555)
    store = LocalStore(str(folder))
    message = _message_of(store.probe, user=NOBODY)
    user = NOBODY if os.geteuid() == 0 else os.geteuid()
    assert message.endswith(f"permission denied for user {user}")
    assert str(folder) in message
    assert _files(public) == []


def test_a_folder_that_may_not_be_read_is_named_with_the_user(public: Path) -> None:
    store = LocalStore(str(public / "out"))
    store.create("plan/a", b"")
    (public / "out/plan").chmod(0o000)
    message = _message_of(lambda: list(store.list("plan/")), user=NOBODY)
    (public / "out/plan").chmod(0o755)
    assert message.startswith(f"cannot list {public}/out/plan: permission denied")


def test_an_object_of_another_user_can_be_linked(public: Path) -> None:
    store = LocalStore(str(public / "out"))
    store.create("parts/a", b"bytes")
    store.create("data/x", b"")
    (public / "out/parts/a").chmod(0o444)  # fs.protected_hardlinks forbids linking to it
    for folder in ("out/data", "out/_tmp"):
        (public / folder).chmod(0o777)
    assert _message_of(lambda: store.link("parts/a", "data/b"), user=NOBODY) == ""
    assert store.read("data/b") == b"bytes"


def test_a_root_below_a_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="part of the path is a file"):
        LocalStore(str(tmp_path / "file/out")).create("a", b"")


@contextmanager
def _file_size_limit(folder: Path) -> Iterator[Callable[[], None]]:
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (32_000, 32_000))


@contextmanager
def _tiny_tmpfs(folder: Path) -> Iterator[Callable[[], None]]:
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield lambda: None
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _can_mount() -> bool:
    with tempfile.TemporaryDirectory() as name:
        try:
            with _tiny_tmpfs(Path(name)):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


# A disk that is full for real needs the right to mount one; the limit on files needs none.
FULL = [pytest.param(_file_size_limit, "ulimit -f", id="file size limit")]
FULL += [pytest.param(_tiny_tmpfs, "no space left", id="full tmpfs")] if _can_mount() else []


@pytest.mark.parametrize(("limited", "reason"), FULL)
def test_a_full_disk_is_an_error_and_leaves_nothing_of_the_object(
    tmp_path: Path, limited: Callable[[Path], AbstractContextManager[Callable[[], None]]], reason: str
) -> None:
    def write() -> None:
        limit()
        store = LocalStore(str(tmp_path))
        store.create("parts/small", b"x" * 20_000)
        store.create("parts/large", b"x" * 100_000)

    with limited(tmp_path) as limit:
        message = _message_of(write)
        left = _files(tmp_path)
    assert message.startswith(f"cannot write {tmp_path}/parts/large: ")
    assert reason in message
    assert left == ["parts/small"]
