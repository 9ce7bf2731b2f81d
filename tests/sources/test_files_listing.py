"""Which files a path names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from unprivileged import without_privileges

from raybatch.errors import SourceError
from raybatch.sources.listing import list_files


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


def listed(folder: Path, *patterns: str) -> list[str]:
    files = list_files([os.path.join(folder, pattern) for pattern in patterns], taken=None)
    return [os.path.relpath(file.path, folder) for file in files]


def test_a_folder_is_read_recursively_without_hidden_and_underscored_names(tmp_path: Path) -> None:
    write(tmp_path, "a", "b/c", "b/d/e", ".hidden", "_SUCCESS", "_temporary/f", "b/.git/g", "b/_raybatch/h")
    assert listed(tmp_path, "") == ["a", "b/c", "b/d/e"]


def test_files_come_in_order_of_their_path_as_text(tmp_path: Path) -> None:
    write(tmp_path, "10", "9", "1", "b/2", "B")
    assert listed(tmp_path, "") == ["1", "10", "9", "B", "b/2"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.x", ["1.x", "2.x"]),
        ("?.x", ["1.x", "2.x"]),
        ("[13].x", ["1.x"]),
        ("*/*.x", ["a/3.x"]),
        ("**/*.x", ["1.x", "2.x", "a/3.x", "a/b/4.x"]),
        ("a/**", ["a/3.x", "a/b/4.x"]),
        ("a*", ["a/3.x", "a/b/4.x"]),
        ("*/b/4.x", ["a/b/4.x"]),
        ("_*/*.x", ["_c/5.x"]),
    ],
)
def test_a_glob_names(pattern: str, found: list[str], tmp_path: Path) -> None:
    write(tmp_path, "1.x", "2.x", "a/3.x", "a/b/4.x", "_c/5.x", "y")
    assert listed(tmp_path, pattern) == found


def test_a_list_names_each_file_once(tmp_path: Path) -> None:
    write(tmp_path, "1.x", "a/2.x")
    assert listed(tmp_path, "a", "*.x", "1.x") == ["1.x", "a/2.x"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    write(tmp_path, "a[1].x", "a1.x")
    assert listed(tmp_path, "a[1].x") == ["a[1].x"]


def test_a_linked_folder_is_followed(tmp_path: Path) -> None:
    write(tmp_path, "real/a")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "real")
    assert listed(tmp_path, "in") == ["in/link/a"]


def test_a_folder_that_links_to_itself_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, "a/b")
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
    with pytest.raises(SourceError, match="again: a link to a folder that contains it"):
        listed(tmp_path, "a")


def test_a_link_to_nothing_is_an_error_that_names_it(tmp_path: Path) -> None:
    write(tmp_path, "a")
    (tmp_path / "b").symlink_to(tmp_path / "gone")
    with pytest.raises(SourceError, match="/b: a link to a file that does not exist"):
        listed(tmp_path, "")


def test_a_pipe_is_an_error_and_not_a_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="pipe: not a regular file"):
        listed(tmp_path, "pipe")


def test_a_missing_file_is_answered_with_similar_names(tmp_path: Path) -> None:
    write(tmp_path, "tickets-2026.jsonl", "other.csv")
    with pytest.raises(SourceError, match=r"tickets-2025\.jsonl: no such file.*: tickets-2026\.jsonl$"):
        listed(tmp_path, "tickets-2025.jsonl")


def test_a_glob_that_matches_nothing_says_what_is_in_the_folder(tmp_path: Path) -> None:
    write(tmp_path, "one.csv", "two.csv")
    with pytest.raises(SourceError, match=r"\*\.jsonl: matches nothing.*one\.csv, two\.csv"):
        listed(tmp_path, "*.jsonl")


def test_a_glob_in_a_missing_folder_says_which_folder_is_missing(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=rf"the folder {tmp_path}/a/b does not exist \(but {tmp_path} does"):
        listed(tmp_path, "a/b/*.jsonl")


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="the folder has no files"):
        listed(tmp_path, "")


def test_a_path_below_a_file_is_an_error_that_says_so(tmp_path: Path) -> None:
    write(tmp_path, "a.x")
    with pytest.raises(SourceError, match=r"a\.x is a file"):
        listed(tmp_path, "a.x/*.jsonl")


@pytest.mark.parametrize("pattern", ["", "locked", "locked/*", "*/a", "locked/a", "**/*.x"])
def test_a_folder_without_permission_is_an_error_however_it_is_named(pattern: str, open_folder: Path) -> None:
    write(open_folder, "fine/a", "locked/a")
    os.chmod(open_folder / "locked", 0)
    with without_privileges(), pytest.raises(SourceError, match=r"locked.*: Permission denied"):
        listed(open_folder, pattern)


def test_a_file_without_permission_is_an_error(open_folder: Path) -> None:
    write(open_folder, "a")
    os.chmod(open_folder / "a", 0)
    with without_privileges(), pytest.raises(SourceError, match="/a: cannot be opened: Permission denied"):
        listed(open_folder, "*")


def test_a_local_version_is_size_and_time_in_nanoseconds(tmp_path: Path) -> None:
    write(tmp_path, "a")
    os.utime(tmp_path / "a", ns=(5, 1_700_000_000_123_456_789))
    [file] = list_files([str(tmp_path / "a")], taken=None)
    assert file.version == {"size": 1, "mtime_ns": 1_700_000_000_123_456_789}


def test_a_file_url_is_a_local_path(tmp_path: Path) -> None:
    write(tmp_path, "a")
    assert [f.path for f in list_files([f"file://{tmp_path}/*"], taken=None)] == [str(tmp_path / "a")]


@pytest.fixture
def bucket(request: pytest.FixtureRequest) -> Iterator[Callable[..., str]]:
    """`bucket("a", "b/c")` puts files into fsspec's memory filesystem, and gives their folder's URL."""
    fs, root = fsspec.filesystem("memory"), f"/{request.node.name}"

    def put(*names: str) -> str:
        for name in names:
            fs.pipe(f"{root}/{name}", b"x")
        return f"memory:/{root}"

    yield put
    if fs.exists(root):
        fs.rm(root, recursive=True)


def remote(url: str, pattern: str) -> list[str]:
    files = list_files([f"{url}/{pattern}"], taken=None)
    return [file.path.rpartition(url.removeprefix("memory:/"))[2].strip("/") for file in files]


def test_a_url_names_a_folder_a_glob_or_a_file(bucket: Callable[..., str]) -> None:
    url = bucket("1.x", "a/3.x", "a/_b/4.x", "_c/5.x", "y")
    assert remote(url, "") == ["1.x", "a/3.x", "y"]
    assert remote(url, "*.x") == ["1.x"]
    assert remote(url, "**/*.x") == ["1.x", "a/3.x"]
    assert remote(url, "_c/*.x") == ["_c/5.x"]
    assert remote(url, "a*") == ["a/3.x"]
    assert remote(url, "a/3.x") == ["a/3.x"]


def test_a_remote_version_is_the_same_from_a_listing_and_from_the_file(bucket: Callable[..., str]) -> None:
    url = bucket("a.x", "b.x")
    versions = [{f.path: f.version for f in list_files([f"{url}/{p}"], taken=None)} for p in ("", "*.x")]
    single = list_files([f"{url}/a.x", f"{url}/b.x"], taken=None)
    assert versions[0] == versions[1] == {f.path: f.version for f in single}


def test_a_missing_url_is_an_error(bucket: Callable[..., str]) -> None:
    url = bucket("a.x")
    with pytest.raises(SourceError, match=r"b\.x: no such file"):
        remote(url, "b.x")
    with pytest.raises(SourceError, match=r"\*\.y: matches nothing"):
        remote(url, "*.y")


def test_an_unknown_scheme_is_an_error_that_names_it() -> None:
    with pytest.raises(SourceError, match="no filesystem for it: Protocol not known: nonsense"):
        list_files(["nonsense://a/b"], taken=None)
