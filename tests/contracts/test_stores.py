"""What every store promises, asked of every store."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from object_stores import azure_store, s3_store
from raybatch.store import LocalStore, Store
from raybatch.store.memory import MemoryStore
from raybatch.store.objects import exists, sha256_of, size_of
from servers.s3 import LAUNCHERS, S3Bucket

Opener = Callable[[], Store]


Make = Callable[[pytest.FixtureRequest], Opener]


def _local(request: pytest.FixtureRequest) -> Opener:
    folder: Path = request.getfixturevalue("tmp_path")
    return lambda: LocalStore(str(folder / "deep" / "output"))


def _memory(_: pytest.FixtureRequest) -> Opener:
    objects: dict[str, bytes] = {}
    return lambda: MemoryStore(objects)


def _s3(name: str) -> Make:
    def make(request: pytest.FixtureRequest) -> Opener:
        bucket: S3Bucket = request.getfixturevalue("s3_servers")(name).bucket()
        return lambda: s3_store(bucket)

    return make


def _azure(request: pytest.FixtureRequest) -> Opener:
    container = request.getfixturevalue("azurite").container()
    return lambda: azure_store(container)


STORES = [
    pytest.param(_local, id="local"),
    pytest.param(_memory, id="memory"),
    *(pytest.param(_s3(name), id=name, marks=pytest.mark.s3) for name in sorted(LAUNCHERS)),
    pytest.param(_azure, id="azurite", marks=pytest.mark.azure),
]


@pytest.fixture(params=STORES)
def opener(request: pytest.FixtureRequest) -> Opener:
    """Opens the same root each time, as each process of a run does."""
    made: Opener = request.param(request)
    return made


@pytest.fixture
def store(opener: Opener) -> Store:
    return opener()


def test_a_key_is_created_once_and_keeps_its_first_bytes(store: Store) -> None:
    assert [store.create("a/b.json", b"first"), store.create("a/b.json", b"second")] == [True, False]
    assert store.read("a/b.json") == b"first"


def test_a_second_opening_of_the_root_sees_what_the_first_created(opener: Opener) -> None:
    opener().create("a/b", b"x")
    assert opener().create("a/b", b"y") is False
    assert opener().read("a/b") == b"x"


def test_any_bytes_are_stored_as_they_are(store: Store) -> None:
    every = bytes(range(256)) * 1000
    store.create("every", memoryview(every))
    store.create("empty", b"")
    assert (store.read("every"), store.read("empty")) == (every, b"")


def test_of_many_threads_exactly_one_creates_a_key_and_its_bytes_stand(opener: Opener) -> None:
    barrier = threading.Barrier(8)

    def attempt(name: bytes) -> list[tuple[int, bytes]]:
        store = opener()
        barrier.wait()
        return [(number, name) for number in range(20) if store.create(f"unit/{number}", name)]

    with ThreadPoolExecutor(8) as threads:
        won = [pair for pairs in threads.map(attempt, [b"thread %d" % i for i in range(8)]) for pair in pairs]
    assert sorted(won) == [(number, opener().read(f"unit/{number}")) for number in range(20)]


def test_what_is_put_is_there_whatever_was_there(store: Store) -> None:
    store.put("parts/a", b"first")
    store.put("parts/a", memoryview(b"second"))
    assert store.read("parts/a") == b"second"


def test_a_large_object_is_put_and_read_as_it_is(store: Store) -> None:
    data = bytes(range(251)) * (40 << 12)  # some 40 MiB: three parts of an upload
    store.put("parts/large", data)
    with store.open("parts/large") as file:
        file.seek(17 << 20)
        assert file.read(1000) == data[17 << 20 : (17 << 20) + 1000]
    assert store.read("parts/large") == data


def test_what_was_put_is_not_created_again(store: Store) -> None:
    store.put("a", b"put")
    assert store.create("a", b"created") is False
    assert store.read("a") == b"put"


def test_a_link_is_another_name_under_the_same_condition(store: Store) -> None:
    store.create("parts/a", b"bytes")
    assert [store.link("parts/a", "data/b"), store.link("parts/a", "data/b")] == [True, False]
    assert store.read("data/b") == b"bytes"


def test_a_link_does_not_replace_what_was_created(store: Store) -> None:
    store.create("parts/a", b"bytes")
    store.create("data/b", b"others")
    assert store.link("parts/a", "data/b") is False
    assert store.read("data/b") == b"others"


def test_a_link_outlives_the_name_it_was_made_from(store: Store) -> None:
    store.create("parts/a", b"bytes")
    store.link("parts/a", "data/b")
    store.delete("parts/a")
    assert store.read("data/b") == b"bytes"
    assert not exists(store, "parts/a")


@pytest.mark.parametrize("ask", ["read", "open", "link", "size_of", "sha256_of"])
def test_a_missing_key_is_a_key_error(store: Store, ask: str) -> None:
    store.create("there/yes", b"")
    asks: dict[str, Callable[[], object]] = {
        "read": lambda: store.read("there/no"),
        "open": lambda: store.open("there/no"),
        "link": lambda: store.link("there/no", "other"),
        "size_of": lambda: size_of(store, "there/no"),
        "sha256_of": lambda: sha256_of(store, "there/no"),
    }
    with pytest.raises(KeyError, match="there/no"):
        asks[ask]()


def test_an_opened_object_can_be_read_anywhere(store: Store) -> None:
    store.create("file", b"0123456789")
    with store.open("file") as file:
        file.seek(-3, 2)
        assert file.read(2) == b"78"
        file.seek(1)
        assert file.read() == b"123456789"


def test_size_and_digest_are_those_of_the_bytes(store: Store) -> None:
    store.create("file", b"abc")
    # FIPS 180-2, appendix B.1
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert (size_of(store, "file"), sha256_of(store, "file")) == (3, digest)


def test_a_listing_has_the_folder_and_what_is_below_in_order_of_keys(store: Store) -> None:
    for key in ("a/b/c", "a/b.json", "a/00000010.json", "a/00000009.json", "ab/c", "c"):
        store.create(key, key.encode())
    found = [(entry.key, entry.size) for entry in store.list("a/")]
    assert found == [("a/00000009.json", 15), ("a/00000010.json", 15), ("a/b.json", 8), ("a/b/c", 5)]


def test_a_listing_of_nothing_is_empty(store: Store) -> None:
    assert list(store.list("never/made/")) == []


def test_a_listing_shows_what_was_created_the_moment_before(opener: Opener) -> None:
    for number in range(5):
        opener().create(f"unit/{number}", b"")
        assert len(list(opener().list("unit/"))) == number + 1


def test_a_listing_of_many_pages_is_whole_and_in_order(store: Store) -> None:
    keys = [f"unit/{number:04d}" for number in range(1100)]
    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(lambda key: store.create(key, b""), reversed(keys)))
    assert [entry.key for entry in store.list("unit/")] == keys


def test_a_prefix_that_is_no_folder_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="ends in '/'"):
        store.list("data")


def test_deleting_twice_is_no_error_and_frees_the_key(store: Store) -> None:
    store.create("a", b"old")
    store.delete("a")
    store.delete("a")
    assert store.create("a", b"new") is True


def test_many_threads_that_link_one_key_make_it_once(opener: Opener) -> None:
    store = opener()
    for number in range(8):
        store.put(f"parts/{number}", b"part %d" % number)
    barrier = threading.Barrier(8)

    def attempt(number: int) -> bool:
        own = opener()
        barrier.wait()
        return own.link(f"parts/{number}", "data/a")

    with ThreadPoolExecutor(8) as threads:
        won = [number for number, made in enumerate(threads.map(attempt, range(8))) if made]
    assert [b"part %d" % number for number in won] == [store.read("data/a")]


def test_a_probe_leaves_nothing_behind(store: Store) -> None:
    store.probe()
    assert list(store.list("")) == []
