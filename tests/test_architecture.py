"""The rules of docs/architecture.md that a program can check: who imports whom, and what is loaded when.

To add a package or a public name, put it into one of the tables at the top.
"""

from __future__ import annotations

import ast
import graphlib
import resource
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import raybatch

PACKAGE = Path(raybatch.__file__).parent

# From top to bottom: a package imports its own layer and those below, never one above.
LAYERS = (
    {"cli"},
    {"api", "testing"},
    {"runtime"},
    {"spec", "ledger", "sources", "stages", "sinks"},
    {"engines", "store"},
    {"arrow_types", "config", "errors", "latency", "nearest", "registry", "retried", "rows", "version"},
)

# Libraries that only these packages may import, at any place in a module.
OWNERS = {
    "ray": {"runtime", "engines"},
    "vllm": {"engines"},
    "torch": {"engines"},
    "transformers": {"engines"},
    "sentence_transformers": {"engines"},
    "obstore": {"store"},
    "boto3": {"store"},
    "kafka": {"sources"},
    "yaml": {"spec"},
    "click": {"cli"},
    "rich": {"cli"},
}

# Seconds to import and hundreds of megabytes each: loaded by the function that needs them.
HEAVY = ("ray", "torch", "vllm", "sentence_transformers", "transformers", "pandas", "obstore", "boto3")

PUBLIC_NAMES = {
    "AuditReport",
    "Commit",
    "CommittedEpoch",
    "GarbageReport",
    "Pipeline",
    "RaybatchError",
    "Reporter",
    "RunReport",
    "Snapshot",
    "StorageOptions",
    "__version__",
    "audit",
    "collect_garbage",
    "committed_epochs",
    "committed_files",
    "live_errors",
    "load_pipeline",
    "pipeline_schema",
    "read_commits",
    "retry",
    "run",
}


def _modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _package(name: str) -> str | None:
    """The part of raybatch that a dotted name is in; None for what is not raybatch or is its root."""
    parts = name.split(".")
    return parts[1] if parts[0] == "raybatch" and len(parts) > 1 else None


def _imports(module: Path) -> Iterator[tuple[int, str]]:
    """Lines and dotted names of all imports, those inside functions and under TYPE_CHECKING included."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def _inner_imports() -> Iterator[tuple[str, str, str]]:
    """(place, importing package, imported package) inside raybatch, its root left out."""
    for module in _modules():
        path = module.relative_to(PACKAGE)
        importer = path.parts[0].removesuffix(".py")
        for line, name in _imports(module):
            imported = _package(name)
            if importer != "__init__" and imported and imported != importer:
                yield f"{path}:{line}", importer, imported


def test_every_package_has_its_layer() -> None:
    found = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.suffix in ("", ".py")}
    assert found - {"__init__", "__pycache__"} == set().union(*LAYERS)


def test_imports_point_down() -> None:
    depth = {package: i for i, layer in enumerate(LAYERS) for package in layer}
    upwards = [
        f"{place}: {importer} imports {imported}"
        for place, importer, imported in _inner_imports()
        if depth[imported] < depth[importer]
    ]
    assert upwards == []


def test_packages_do_not_import_each_other_in_circles() -> None:
    graph: dict[str, set[str]] = {}
    for _, importer, imported in _inner_imports():
        graph.setdefault(importer, set()).add(imported)
    try:
        order = list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"packages import each other: {' -> '.join(error.args[1])}")
    assert order[-1] == "cli"


@pytest.mark.parametrize("library", OWNERS)
def test_a_library_is_imported_by_its_owners_only(library: str) -> None:
    others = [
        f"{module.relative_to(PACKAGE)}:{line}"
        for module in _modules()
        for line, name in _imports(module)
        if name.split(".")[0] == library and module.relative_to(PACKAGE).parts[0] not in OWNERS[library]
    ]
    assert others == []


def _loaded_by(code: str) -> set[str]:
    """The heavy libraries that a fresh interpreter has loaded after running `code`."""
    program = (
        f"import sys\n{textwrap.dedent(code)}\nprint('LOADED', *(m for m in {HEAVY!r} if m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


def _command(*args: str) -> str:
    return f"from raybatch.cli.main import run\nassert run({list(args)!r}) == 0"


def test_import_raybatch_loads_nothing_heavy() -> None:
    assert _loaded_by("import raybatch") == set()


def test_importing_every_module_loads_nothing_heavy() -> None:
    code = """
        import importlib, pkgutil, raybatch
        for module in pkgutil.walk_packages(raybatch.__path__, "raybatch."):
            importlib.import_module(module.name)
    """
    assert _loaded_by(code) == set()


@pytest.mark.parametrize("args", [["--help"], ["run", "--help"], ["audit", "--help"], ["schema"]])
def test_help_and_schema_load_nothing_heavy(args: list[str]) -> None:
    assert _loaded_by(_command(*args)) == set()


@pytest.fixture
def pipeline(tmp_path: Path) -> str:
    """A pipeline with every kind of stage. What it names need not exist: nothing of it is opened."""
    path = tmp_path / "pipeline.yaml"
    path.write_text(
        textwrap.dedent(
            """\
            name: everything
            source: {type: files, path: in/*.jsonl}
            stages:
              - {type: generate, model: ./model, prompt: "Say {{ body }}", output: said}
              - {type: embed, model: ./model, input: said, output: vector}
              - {type: python, function: "here:there"}
            sink: {type: parquet, path: out}
            """
        ),
        encoding="utf-8",
    )
    return str(path)


def test_validate_loads_nothing_heavy(pipeline: str) -> None:
    assert _loaded_by(_command("validate", pipeline)) == set()


def test_validate_takes_less_than_two_seconds(pipeline: str) -> None:
    # Processor time: on a machine that does other things at the same time, the clock measures those.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    _loaded_by(_command("validate", pipeline))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


def test_the_public_names_are_these() -> None:
    assert set(raybatch.__all__) == PUBLIC_NAMES
    assert [name for name in PUBLIC_NAMES if getattr(raybatch, name, None) is None] == []
