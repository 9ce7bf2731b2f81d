"""Finds the user's function that a pipeline names as `module:function`.

The module is looked for beside the pipeline file first, then among what is installed. One beside the pipeline
is loaded under a name that contains its folder, and the modules that it imports from there are known by their
plain names only while it is loaded: two pipelines in one process may both have a `functions.py` and a
`rules.py`, and each gets its own. So a module beside the pipeline is imported at the top of a file, or
relatively (`from . import rules`); a plain import inside of a function's body comes too late.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import os
import re
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from raybatch.errors import StageError
from raybatch.nearest import did_you_mean

NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
"""The form `module:function`."""

_MESSAGE_CHARACTERS = 2_000  # an exception may print a whole document

_LOCK = threading.RLock()  # sys.modules and sys.path are everybody's
_SIBLINGS: dict[str, dict[str, types.ModuleType]] = {}  # by folder: what was loaded from there, by plain name


def load(name: str, *, base_dir: str, init: Mapping[str, Any]) -> Callable[..., Any]:
    """The function `name`, or an instance of the class `name`, made with `init`.

    Raises `StageError` for a module or name that does not exist, for what cannot be called, and for what
    importing the module or making the instance raises.
    """
    module_name, _, attribute = name.partition(":")
    with _beside(base_dir):
        module = _module(module_name, name, base_dir)
        found = _attribute(module, attribute, name)
        if not inspect.isclass(found):
            if init:
                raise StageError(f"function '{name}' is no class, so `init` has no use")
            return _callable(found, name)
        try:
            return _callable(found(**init), name, "; give the class a __call__")
        except StageError:
            raise
        except Exception as error:
            raise StageError(
                f"function '{name}': {type(error).__name__}: {message_of(error, base_dir)}"
            ) from error


def source_digest(name: str, *, base_dir: str) -> str | None:
    """A digest of the code of `name` and of what it imports from `base_dir`; None when it is not found there.

    Follows import statements, wherever they are; not what is imported by other means.
    """
    seen: dict[str, bytes] = {}
    todo = [name.partition(":")[0]]
    while todo:
        path = _path(todo.pop(), base_dir)
        if path is None or path in seen:
            continue
        with open(path, "rb") as file:
            seen[path] = file.read()
        todo += _imports(seen[path], os.path.relpath(path, base_dir))
    if not seen:
        return None
    digest = hashlib.sha256()
    for path in sorted(seen):
        digest.update(f"{os.path.relpath(path, base_dir)}\0{len(seen[path])}\0".encode() + seen[path])
    return digest.hexdigest()[:16]


def message_of(error: BaseException, base_dir: str) -> str:
    """`no such month (rules.py:12)`: what was raised, and where the user's own code was, as deep as it
    got."""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    folder = os.path.realpath(base_dir)
    own = [frame for frame in frames if _is_inside(frame[0], folder)] or frames[-1:]
    where = f" ({os.path.basename(own[-1][0])}:{own[-1][1]})" if own else ""
    return f"{str(error)[:_MESSAGE_CHARACTERS]}{where}"


def _module(module_name: str, name: str, base_dir: str) -> types.ModuleType:
    own = _path(module_name, base_dir) is not None
    try:
        return importlib.import_module(f"{_package(base_dir)}.{module_name}" if own else module_name)
    except ModuleNotFoundError as error:
        if not own and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            near = did_you_mean(module_name, _top_level(base_dir))
            where = f"neither in {base_dir} nor installed"
            raise StageError(
                f"function '{name}': there is no module '{module_name}', {where}{near}"
            ) from None
        raise StageError(
            f"function '{name}': {type(error).__name__}: {message_of(error, base_dir)}"
        ) from error
    except Exception as error:
        raise StageError(
            f"function '{name}': {type(error).__name__}: {message_of(error, base_dir)}"
        ) from error


def _attribute(module: types.ModuleType, attribute: str, name: str) -> Any:
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [n for n in dir(found) if not n.startswith("_") and callable(getattr(found, n, None))]
            known = f"; it has {', '.join(names[:20])}" if names else ""
            where = getattr(module, "__file__", None) or module.__name__
            raise StageError(f"function '{name}': {where} has no '{part}'{did_you_mean(part, names)}{known}")
        found = getattr(found, part)
    return found


def _callable(found: Any, name: str, advice: str = "") -> Callable[..., Any]:
    if callable(found):
        return found  # type: ignore[no-any-return]
    raise StageError(f"function '{name}' is of type {type(found).__name__}, which cannot be called{advice}")


def _path(module_name: str, base_dir: str) -> str | None:
    """The file of a module beside the pipeline."""
    stem = os.path.join(base_dir, *module_name.split("."))
    return next((p for p in (f"{stem}.py", os.path.join(stem, "__init__.py")) if os.path.isfile(p)), None)


def _package(base_dir: str) -> str:
    """The name of a package, made on the spot, whose modules are the files in `base_dir`."""
    folder = os.path.realpath(base_dir)
    name = f"_raybatch_{hashlib.sha256(folder.encode()).hexdigest()[:12]}"
    if name not in sys.modules:
        package = types.ModuleType(name, f"What is in {folder}.")
        package.__path__ = [folder]
        sys.modules[name] = package
    return name


@contextmanager
def _beside(base_dir: str) -> Iterator[None]:
    """While it lasts, `import rules` finds `rules.py` in `base_dir`, as for a script that is there."""
    folder = os.path.realpath(base_dir)
    with _LOCK:
        own = _SIBLINGS.setdefault(folder, {})
        names = set(_top_level(base_dir)) - sys.stdlib_module_names
        found = {key: module for key, module in sys.modules.items() if key.partition(".")[0] in names}
        # Those of other folders step aside; one that somebody imported from this folder serves as well
        here = {key for key, module in found.items() if _is_inside(getattr(module, "__file__", None), folder)}
        hidden = {key: module for key, module in found.items() if key not in here}
        for key in hidden:
            del sys.modules[key]
        sys.modules.update({key: module for key, module in own.items() if key not in here})
        sys.path.insert(0, base_dir)
        importlib.invalidate_caches()
        try:
            yield
        finally:
            sys.path.remove(base_dir)
            loaded = [key for key in sys.modules if key.partition(".")[0] in names and key not in here]
            own.update({key: sys.modules.pop(key) for key in loaded})
            sys.modules.update(hidden)


def _is_inside(path: str | None, folder: str) -> bool:
    return path is not None and os.path.realpath(path).startswith(os.path.join(folder, ""))


def _top_level(base_dir: str) -> Iterator[str]:
    # The folder may be on the driver's machine only; installed functions work without it
    for entry in os.scandir(base_dir) if os.path.isdir(base_dir) else ():
        if entry.name.endswith(".py"):
            yield entry.name[:-3]
        elif os.path.isfile(os.path.join(entry.path, "__init__.py")):
            yield entry.name


def _imports(source: bytes, path: str) -> Iterator[str]:
    """The modules that a file at `path`, relative to the pipeline's folder, may import from that folder."""
    package = os.path.dirname(path).split(os.sep) if os.path.dirname(path) else []
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return  # said when it is loaded
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}".lstrip(".") for alias in node.names)
