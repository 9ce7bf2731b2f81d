"""Finding a user's function, and keeping the modules of two pipelines apart."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from raybatch.errors import StageError
from raybatch.stages import functions


def write(folder: Path, **modules: str) -> Path:
    for name, source in modules.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
    return folder


def load(name: str, folder: Path, **init: Any) -> Any:
    return functions.load(name, base_dir=str(folder), init=init)


def test_a_function_is_found_beside_the_pipeline(tmp_path: Path) -> None:
    write(tmp_path, rules="def double(x): return 2 * x")
    assert load("rules:double", tmp_path)(4) == 8


def test_an_installed_function_is_found(tmp_path: Path) -> None:
    assert load("json:dumps", tmp_path)({}) == "{}"
    assert load("os.path:basename", tmp_path)("a/b") == "b"


def test_an_installed_function_is_found_where_the_pipeline_s_folder_is_not(tmp_path: Path) -> None:
    assert load("json:dumps", tmp_path / "on another machine")({}) == "{}"


def test_a_module_in_a_package_may_import_its_neighbours_relatively(tmp_path: Path) -> None:
    write(
        tmp_path,
        pack____init__="",
        pack__a="from .b import f\nfrom . import b",
        pack__b="def f(): return 'b'",
    )
    assert load("pack.a:f", tmp_path)() == "b"
    assert load("pack.a:b.f", tmp_path)() == "b"


def test_a_relative_import_beside_the_pipeline_works_when_the_function_runs(tmp_path: Path) -> None:
    write(tmp_path, late="def f():\n    from . import other\n    return other.X", other="X = 7")
    assert load("late:f", tmp_path)() == 7


def test_two_pipelines_with_modules_of_one_name_get_each_their_own(tmp_path: Path) -> None:
    for name in ("p", "q"):
        source = "import rules\nfrom rules import NAME\ndef f(): return NAME, rules.NAME"
        write(tmp_path / name, main=source, rules=f"NAME = {name!r}")
    found = [load("main:f", tmp_path / name) for name in ("p", "q", "p")]
    assert [f() for f in found] == [("p", "p"), ("q", "q"), ("p", "p")]
    assert found[0] is found[2]


def test_loading_leaves_the_interpreter_as_it_was(tmp_path: Path) -> None:
    write(tmp_path, main="import rules\ndef f(): return rules.X", rules="X = 1")
    path, names = list(sys.path), {n for n in sys.modules if not n.startswith("_raybatch_")}
    load("main:f", tmp_path)
    assert sys.path == path
    assert {n for n in sys.modules if not n.startswith("_raybatch_")} == names


def test_a_module_of_the_same_name_that_somebody_else_has_imported_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "theirs", helper_of_a_test="X = 'theirs'")
    write(
        tmp_path / "ours",
        main="import helper_of_a_test as h\ndef f(): return h.X",
        helper_of_a_test="X = 'ours'",
    )
    monkeypatch.syspath_prepend(tmp_path / "theirs")
    import helper_of_a_test  # type: ignore[import-not-found]

    assert load("main:f", tmp_path / "ours")() == "ours"
    assert sys.modules["helper_of_a_test"] is helper_of_a_test
    monkeypatch.delitem(sys.modules, "helper_of_a_test")


def test_a_file_beside_the_pipeline_does_not_hide_the_standard_library(tmp_path: Path) -> None:
    write(tmp_path, json="raise RuntimeError", main="import json\ndef f(): return json.dumps([])")
    assert load("main:f", tmp_path)() == "[]"


def test_a_class_is_made_once_with_its_arguments(tmp_path: Path) -> None:
    write(
        tmp_path,
        rules="""
        class Scale:
            def __init__(self, by): self.by = by
            def __call__(self, x): return self.by * x
        """,
    )
    assert load("rules:Scale", tmp_path, by=3)(5) == 15


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ruels:f", r"no module 'ruels', neither in .* nor installed \(did you mean 'rules'\?\)"),
        ("no.such.package:f", "no module 'no.such.package'"),
        ("rules:duoble", r"rules.py has no 'duoble' \(did you mean 'double'\?\); it has Plain, double"),
        ("rules:double.inner", "has no 'inner'"),
        ("rules:NUMBER", "is of type int, which cannot be called"),
        ("rules:Plain", "is of type Plain, which cannot be called; give the class a __call__"),
        ("broken:f", "function 'broken:f': ZeroDivisionError: division by zero .broken.py:2."),
        ("syntax:f", "function 'syntax:f': SyntaxError"),
        (
            "needs:f",
            "function 'needs:f': ModuleNotFoundError: No module named 'no_such_library' .needs.py:1.",
        ),
    ],
)
def test_what_cannot_be_loaded_says_why_and_what_there_is(tmp_path: Path, name: str, message: str) -> None:
    write(
        tmp_path,
        rules="NUMBER = 1\ndef double(x): return 2 * x\nclass Plain: pass",
        broken="x = 0\n1 / x",
        syntax="def f(:",
        needs="import no_such_library",
    )
    with pytest.raises(StageError, match=message):
        load(name, tmp_path)


def test_a_class_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    write(
        tmp_path, rules="class C:\n    def __init__(self, path): open(path)\n    def __call__(self, x): pass"
    )
    with pytest.raises(StageError, match=r"FileNotFoundError: .*missing.txt' \(rules.py:2\)"):
        load("rules:C", tmp_path, path=str(tmp_path / "missing.txt"))
    with pytest.raises(StageError, match="unexpected keyword argument 'paht'"):
        load("rules:C", tmp_path, paht="x")


def test_arguments_for_a_function_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="is no class, so `init` has no use"):
        load("json:dumps", tmp_path, indent=2)


@pytest.mark.parametrize("name", ["a:b", "a.b:c", "_a1.b:C.d"])
def test_a_name_is_a_module_and_a_function(name: str) -> None:
    assert functions.NAME.fullmatch(name)


@pytest.mark.parametrize("name", ["a", "a:", ":a", "a:b:c", "a/b:c", "a.py:c d", "../a:b", "a..b:c"])
def test_what_is_no_name_is_told_from_one(name: str) -> None:
    assert not functions.NAME.fullmatch(name)


def test_the_digest_follows_what_the_module_imports_beside_it(tmp_path: Path) -> None:
    write(
        tmp_path,
        main="import json, rules\nfrom pack import deep\ndef f(): pass",
        rules="X = 1",
        pack____init__="",
        pack__deep="from . import deeper",
        pack__deeper="Y = 1",
        unrelated="Z = 1",
    )

    def digest() -> str | None:
        return functions.source_digest("main:f", base_dir=str(tmp_path))

    digests = [digest()]
    for name in ("main", "rules", "pack__deeper"):
        write(
            tmp_path, **{name: f"{(tmp_path / (name.replace('__', '/') + '.py')).read_text()}\nchanged = 1"}
        )
        digests.append(digest())
    assert len(set(digests)) == 4
    write(tmp_path, unrelated="Z = 2")
    assert digest() == digests[-1]


def test_the_digest_does_not_depend_on_where_the_pipeline_is(tmp_path: Path) -> None:
    for name in ("p", "q"):
        write(tmp_path / name, main="import rules", rules="X = 1")
    p, q = (functions.source_digest("main:f", base_dir=str(tmp_path / name)) for name in "pq")
    assert p == q
    assert p is not None


def test_an_installed_function_has_no_digest(tmp_path: Path) -> None:
    assert functions.source_digest("json:dumps", base_dir=str(tmp_path)) is None
