"""YAML as a pipeline file may use it: plain data, every key once, within bounds."""

from __future__ import annotations

import json
import string
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from raybatch.errors import SpecError
from raybatch.spec import yaml_tree
from raybatch.spec.tree import Findings, Node, Origin, plain
from raybatch.spec.yaml_tree import parse_argument, read_tree


def read(folder: Path, text: str | bytes) -> Node:
    (folder / "p.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    findings = Findings()
    tree = read_tree("p.yaml", findings=findings)
    findings.raise_if_any()
    return tree


def refusal(folder: Path, text: str | bytes) -> str:
    with pytest.raises(SpecError) as caught:
        read(folder, text)
    return str(caught.value)


def test_a_duplicate_key_names_both_lines(folder: Path) -> None:
    text = "a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\na: 2\n"
    assert refusal(folder, text).splitlines() == [
        "p.yaml:5: duplicate key 'c', first said on line 3",
        "p.yaml:6: duplicate key 'a', first said on line 1",
    ]


def test_a_duplicate_key_in_braces_is_found(folder: Path) -> None:
    assert refusal(folder, "a: {b: 1, b: 2}\n") == "p.yaml:1: duplicate key 'b', first said on line 1"


def test_a_tab_is_told_with_line_and_column(folder: Path) -> None:
    message = refusal(folder, "a:\n\tb: 1\n")
    assert message.startswith("p.yaml:2:1: ")
    assert message.endswith("(YAML indents with spaces, not tabs)")


def test_broken_yaml_is_told_with_line_and_column(folder: Path) -> None:
    assert refusal(folder, "a: 1\nb: [1, 2\nc: 3\n").startswith("p.yaml:3:")


def test_a_second_document_is_refused(folder: Path) -> None:
    message = refusal(folder, "a: 1\n---\nb: 2\n")
    assert message.startswith("p.yaml:2:1: ")
    assert "one file describes one pipeline" in message


@pytest.mark.parametrize(
    "tagged",
    [
        "!!python/object/apply:os.system [ls]",
        "!!binary aGk=",
        "!mine 5",
        "!!set {a, b}",
        "!!timestamp 2026-11-01",
    ],
)
def test_tags_of_other_types_are_refused(folder: Path, tagged: str) -> None:
    message = refusal(folder, f"a: 1\nb: {tagged}\n")
    assert message.startswith("p.yaml:2: the tag !")
    assert message.endswith("is not allowed; only plain YAML data is")


@pytest.mark.parametrize("key", ["1", "on", "null", "[a]"])
def test_keys_are_text(folder: Path, key: str) -> None:
    assert "is not text; put it in quotes" in refusal(folder, f"? {key}\n: 5\n")


def test_a_quoted_number_is_a_key(folder: Path) -> None:
    assert plain(read(folder, '"1": 5\n')) == {"1": 5}


def test_dates_stay_text_and_exponents_are_numbers(folder: Path) -> None:
    text = "a: 2026-11-01\nb: 1e-5\nc: 2E3\nd: 1_000\ne: 'off'\nf: off\ng: =\nh: ~\n"
    expected = {
        "a": "2026-11-01",
        "b": 1e-5,
        "c": 2000.0,
        "d": 1000,
        "e": "off",
        "f": False,
        "g": "=",
        "h": None,
    }
    assert plain(read(folder, text)) == expected


TEXT = st.text(string.printable.strip() + " äß漢🙂", max_size=20)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
JSON = st.recursive(
    SCALARS, lambda data: st.lists(data, max_size=4) | st.dictionaries(TEXT, data, max_size=4), max_leaves=20
)


@given(st.dictionaries(TEXT, JSON, max_size=5))
def test_json_is_read_as_the_same_data(data: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "p.yaml")
        path.write_text(json.dumps(data, ensure_ascii=False, indent=1), encoding="utf-8")
        findings = Findings()
        assert (plain(read_tree(str(path), findings=findings)), len(findings)) == (data, 0)


@pytest.mark.parametrize("number", [".inf", "-.inf", ".nan", "1e999"])
def test_a_number_is_finite(folder: Path, number: str) -> None:
    assert refusal(folder, f"a: {number}\n") == f"p.yaml:1: {number} is not a finite number"


def test_a_value_that_is_not_of_its_tag_is_refused(folder: Path) -> None:
    assert refusal(folder, "a: !!int many\n") == "p.yaml:1: 'many' is not of type !!int"


def test_a_number_of_ten_thousand_digits_is_refused(folder: Path) -> None:
    assert "is not of type !!int" in refusal(folder, f"a: {'9' * 10_000}\n")


def test_anchors_and_merge_keys_share_what_is_said_once(folder: Path) -> None:
    text = "a: &x {b: 1, c: 2}\nd: *x\ne:\n  <<: *x\n  c: 3\nf:\n  <<: [{b: 5}, *x]\n"
    tree = read(folder, text)
    assert plain(tree) == {
        "a": {"b": 1, "c": 2},
        "d": {"b": 1, "c": 2},
        "e": {"c": 3, "b": 1},
        "f": {"b": 5, "c": 2},
    }


def test_an_alias_bomb_is_refused(folder: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    assert "more than 100000 values once its aliases are expanded" in refusal(folder, "\n".join(lines))


def test_an_alias_inside_itself_is_refused(folder: Path) -> None:
    assert "an alias inside itself" in refusal(folder, "a: &a [*a]\n")


def test_deep_nesting_is_refused(folder: Path) -> None:
    assert "nested deeper than 64 levels" in refusal(folder, "a: " + "[" * 50_000)


def test_a_huge_file_is_refused_before_it_is_parsed(folder: Path) -> None:
    text = b"[" * (yaml_tree.MAX_BYTES + 1)  # not YAML either: only the size is looked at
    assert refusal(folder, text) == "p.yaml: larger than 1048576 bytes, which no pipeline file is"


def test_bytes_that_are_not_utf8_are_told_with_their_line(folder: Path) -> None:
    assert refusal(folder, b"a: 1\nb: caf\xe9\n").startswith("p.yaml:2: not UTF-8 text")


def test_a_control_character_is_told_with_its_line(folder: Path) -> None:
    assert refusal(folder, b"a: 1\nb: x\x00y\n") == "p.yaml:2: the character U+0000 is not allowed in YAML"


def test_a_byte_order_mark_is_no_part_of_the_first_key(folder: Path) -> None:
    assert plain(read(folder, b"\xef\xbb\xbfname: x\n")) == {"name": "x"}


def test_windows_line_ends_count_as_one(folder: Path) -> None:
    assert refusal(folder, b"a: 1\r\nb: 2\r\na: 3\r\n") == "p.yaml:3: duplicate key 'a', first said on line 1"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.5", 0.5),
        ("1e-5", 1e-5),
        ("true", True),
        ("", None),
        ("null", None),
        ("plain text", "plain text"),
        ("Summarise: {{ body }} # please", "Summarise: {{ body }} # please"),
        ("*not an alias", "*not an alias"),
        ("- not a list", "- not a list"),
        ("'{{ body }}'", "{{ body }}"),
        ('"5"', "5"),
        ("[a, {b: 1}]", ["a", {"b": 1}]),
        ("<<", "<<"),
        ("2026-11-01", "2026-11-01"),
    ],
)
def test_an_argument_is_one_scalar_or_a_flow_collection(text: str, value: object) -> None:
    findings = Findings()
    node = parse_argument(text, origin=Origin(where="--set k", base_dir="/"), findings=findings)
    assert (plain(node), len(findings)) == (value, 0)


def test_an_argument_that_starts_like_a_collection_is_told_to_be_quoted() -> None:
    with pytest.raises(SpecError, match=r"^--set k:1:.*needs quotes"):
        parse_argument("[summarise", origin=Origin(where="--set k", base_dir="/"), findings=Findings())
