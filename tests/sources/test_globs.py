"""Which keys a pattern names: what the same path names on a local disk."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raybatch.errors import SourceError
from raybatch.sources.globs import Pattern
from raybatch.sources.listing import list_files

KEYS = ["1.x", "2.x", "a/3.x", "a/b/4.x", "_c/5.x", "_c/_d/6.x", "a/.g/7.x", "a/b/_e/8.x", "y", "a[1].x"]
PATTERNS = [
    "",
    "a",
    "a/b",
    "_c",
    "*.x",
    "?.x",
    "[13].x",
    "[!1].x",
    "*/*.x",
    "**/*.x",
    "a/**",
    "**",
    "a*",
    "*/b/4.x",
    "_*/*.x",
    "_*",
    "**/b",
    "**/b/**",
    "a/**/4.x",
    "**/_e/*",
    "a/.*/*",
    "[",
    "*[",
]


def named(keys: list[str], pattern: str) -> list[str]:
    return sorted(key for key in keys if Pattern.of(pattern).names(key))


def on_disk(folder: Path, pattern: str) -> list[str]:
    try:
        files = list_files([os.path.join(folder, pattern)], taken=None)
    except SourceError:  # nothing
        return []
    return [os.path.relpath(file.path, folder) for file in files]


def write(folder: Path, keys: list[str]) -> None:
    for key in keys:
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).touch()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_names_the_keys_that_the_path_names_on_disk(pattern: str, tmp_path: Path) -> None:
    write(tmp_path, KEYS)
    assert named(KEYS, pattern) == on_disk(tmp_path, pattern)


NAMES = st.text("ab_.", min_size=1, max_size=3).filter(lambda name: name.strip("."))
PARTS = st.one_of(
    st.just("**"), st.text("ab*?_.", min_size=1, max_size=3).filter(lambda p: p.strip(".") and "**" not in p)
)


@settings(max_examples=100, deadline=None)
@given(
    keys=st.lists(st.lists(NAMES, min_size=1, max_size=4).map("/".join), max_size=8, unique=True),
    pattern=st.lists(PARTS, min_size=1, max_size=4).map("/".join),
)
def test_any_pattern_does(keys: list[str], pattern: str) -> None:
    folders = {key.rsplit("/", n)[0] for key in keys for n in range(1, key.count("/") + 1)}
    keys = [key for key in keys if key not in folders]  # on a disk a name is a file or a folder
    if not Pattern.of(pattern).parts:
        return  # a literal path to a file is looked up, not matched
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), keys)
        assert named(keys, pattern) == on_disk(Path(folder), pattern)


@settings(max_examples=200, deadline=None)
@given(
    key=st.lists(NAMES, min_size=2, max_size=5),
    pattern=st.lists(PARTS, min_size=1, max_size=4).map("/".join),
    cut=st.integers(1, 4),
)
def test_a_folder_that_holds_a_named_key_is_never_left_out(key: list[str], pattern: str, cut: int) -> None:
    glob = Pattern.of(pattern)
    folder = "/".join(key[:cut])
    below = glob.folder == "" or folder.startswith(f"{glob.folder}/")
    if cut < len(key) and below and glob.names("/".join(key)):
        assert glob.may_hold(folder)


@pytest.mark.parametrize(
    ("pattern", "literal"),
    [("", ""), ("a", "a/"), ("a/2026-*/x", "a/2026-"), ("*.x", ""), ("a/**", "a/"), ("2026-*", "2026-")],
)
def test_the_literal_part_is_how_all_named_keys_start(pattern: str, literal: str) -> None:
    assert Pattern.of(pattern).literal == literal
