"""Prompt templates: Jinja in the immutable sandbox, with a limit on size and on time.

The sandbox keeps a template from reaching Python. What it does not limit is work: nested loops, macros that
call themselves, `'a' * 10**10`. So every loop body and macro checks a deadline, and every operation whose
result can be larger than what went in is measured before or after it is done (`template_limits`). No signal
and no thread is needed, so it holds in any thread of a worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.environment import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from raybatch.stages.row_error import RowError
from raybatch.stages.template_limits import (
    BUDGET,
    OverTimeError,
    TooLargeError,
    checked_arguments,
    measured_filter,
    refuse_large_power,
    refuse_large_product,
    refuse_wide_fields,
    refuse_wide_format,
    spent,
)

ROW = "row"  # the whole row as a dict, for columns whose names are no identifiers: {{ row["first name"] }}


class PromptTemplate:
    """One compiled template. Not picklable: compile it where it is used. Safe to use from several threads.

    `max_bytes` limits the rendered text (UTF-8), `timeout_s` the processor time of one rendering.
    """

    def __init__(self, source: str, *, max_bytes: int, timeout_s: float) -> None:
        """Raises `ValueError`, which names the line, for bad syntax and for templates that need others."""
        self.max_bytes = max_bytes
        self._timeout_s = timeout_s
        try:
            tree = _ENVIRONMENT.parse(source)
            if next(meta.find_referenced_templates(tree), "") != "":
                raise ValueError("include, import and extends have nothing to load; write it in one template")
            self.names, self.reads = _reads(tree)
            with BUDGET.limited(timeout_s):  # constants are computed when it is compiled
                self._template: Template = _ENVIRONMENT.from_string(source)
        except TemplateSyntaxError as error:
            raise ValueError(f"line {error.lineno}: {error.message}") from None
        except RecursionError:
            raise ValueError("its expressions are nested too deeply") from None

    names: frozenset[str]
    """The variables that `render` looks up; `row` stands for the whole row."""
    reads: list[str] | None
    """The columns that it needs, sorted; None when only rendering tells, because it uses `row` as a whole."""

    def render(self, row: Mapping[str, Any]) -> str:
        """The text for `row`, which holds at least the columns in `reads`.

        Raises `RowError` "TemplateError", "TemplateTimeout" or "PromptTooLarge".
        """
        values = {name: row[name] for name in self.names if name in row}
        if ROW in self.names and ROW not in values:
            values[ROW] = dict(row)
        try:
            with BUDGET.limited(self._timeout_s):
                text = self._text(values)
        except OverTimeError:
            what = f"the template ran for more than {self._timeout_s:g} s of processor time"
            raise RowError("TemplateTimeout", what) from None
        except (TooLargeError, MemoryError) as error:
            raise RowError("PromptTooLarge", str(error) or "the template needs too much memory") from None
        except _NullError:
            raise RowError("TemplateError", self._null_message(values)) from None
        except Exception as error:
            raise RowError("TemplateError", self._error_message(error)) from None
        return text

    def _text(self, values: dict[str, Any]) -> str:
        size = 0
        chunks = []
        for chunk in self._template.root_render_func(self._template.new_context(values)):
            size += len(chunk)
            if size > self.max_bytes:
                raise TooLargeError(f"the prompt is larger than {self.max_bytes} bytes")
            BUDGET.tick()
            chunks.append(chunk)
        text = "".join(chunks)
        if not text.isascii() and len(text.encode(errors="surrogatepass")) > self.max_bytes:
            raise TooLargeError(f"the prompt is larger than {self.max_bytes} bytes")
        return text

    def _error_message(self, error: Exception) -> str:
        message = str(error) or type(error).__name__
        line = None
        trace = error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == "<template>":
                line = self._template.get_corresponding_lineno(trace.tb_lineno)
            trace = trace.tb_next
        kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
        return f"line {line}: {kind}{message}" if line else f"{kind}{message}"

    def _null_message(self, values: Mapping[str, Any]) -> str:
        nulls = sorted(name for name, value in values.items() if value is None)
        which = " or ".join(f"'{name}'" for name in nulls) or "a value"
        name = nulls[0] if nulls else "value"
        instead = f"{{{{ {name} or '' }}}}"
        return f"{which} is null; say what to write then, as in {instead}, or test it with {{% if %}}"


class _NullError(Exception):
    pass


def _printable(value: Any) -> Any:
    """What `{{ }}` writes. Jinja would write "None" and "<built-in method ...>" into prompts."""
    if value is None:
        raise _NullError
    if callable(value) and not hasattr(value, "__html__") and hasattr(value, "__name__"):
        raise TypeError(f"'{value.__name__}' is a function; call it with ()")
    return value


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, autoescape=False, finalize=_printable)
        del self.globals["lipsum"]  # random text
        # Random, or for web pages, with regular expressions that no deadline interrupts
        for name in ("random", "urlize", "xmlattr", "pprint"):
            del self.filters[name]
        self.filters = {name: measured_filter(name, function) for name, function in self.filters.items()}
        self.tick = _tick
        self.concat_measured = _concat

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Instrument(self).visit(source), *args, **kwargs)

    def getattr(self, obj: Any, attribute: str) -> Any:
        # Jinja prefers the method: {{ order.items }} would print it, though the order has a field `items`
        if isinstance(obj, dict) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)

    def call_test(self, *args: Any, **kwargs: Any) -> Any:
        BUDGET.tick()
        return super().call_test(*args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            refuse_large_product(left, right)
        elif operator == "**":
            refuse_large_power(left, right)
        elif operator == "%" and isinstance(left, (str, bytes)):
            refuse_wide_format(left, right if isinstance(right, tuple) else (right,))
        return spent(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        # named as in Jinja, which passes keyword arguments of the template through
        BUDGET.tick()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, (str, bytes, int)):
            args = checked_arguments(owner, __obj.__name__, args, kwargs)
        text = getattr(getattr(__obj, "__wrapped__", None), "__self__", None)
        if isinstance(text, str):  # the sandbox's str.format
            refuse_wide_fields(text, (*args, *kwargs.values()))
        return spent(super().call(__context, __obj, *args, **kwargs))


class _Instrument(NodeTransformer):
    """Puts a deadline check into every loop and macro, and measures `~`."""

    def __init__(self, environment: _Sandbox) -> None:
        self._environment = environment

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        self._tick_in(node)
        if node.test is not None:  # a loop whose test is never true has no body that runs
            node.test = self._placed(nodes.And(self._call("tick", [], node), node.test), node)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        self._tick_in(node)
        return node

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        self._tick_in(node)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return self._call("concat_measured", [self._placed(nodes.List(node.nodes), node)], node)

    def _tick_in(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> None:
        node.body.insert(0, self._placed(nodes.ExprStmt(self._call("tick", [], node)), node))

    def _call(self, name: str, arguments: list[Any], at: nodes.Node) -> nodes.Call:
        function = nodes.EnvironmentAttribute(name)
        call: nodes.Call = self._placed(nodes.Call(function, arguments, [], None, None), at)
        return call

    def _placed(self, node: Any, at: nodes.Node) -> Any:
        return node.set_lineno(at.lineno).set_environment(self._environment)


def _tick() -> bool:
    BUDGET.tick()
    return True


def _concat(parts: list[Any]) -> str:
    texts = [str(_printable(part)) for part in parts]
    BUDGET.spend(sum(map(len, texts)))
    return "".join(texts)


def _reads(tree: nodes.Template) -> tuple[frozenset[str], list[str] | None]:
    """The variables of a template, and its columns as far as reading it tells."""
    names = frozenset(meta.find_undeclared_variables(tree) - _ENVIRONMENT.globals.keys())
    if ROW not in names:
        return names, sorted(names)
    fixed = set()
    # Nodes are equal when they say the same, so this counts; each `row.x` and `row["x"]` takes one away
    uses: list[nodes.Expr] = [n for n in tree.find_all(nodes.Name) if n.name == ROW and n.ctx == "load"]
    for node in tree.find_all((nodes.Getattr, nodes.Getitem)):
        if isinstance(node, nodes.Getattr) and node.node in uses:
            fixed.add(node.attr)
        elif isinstance(node, nodes.Getitem) and node.node in uses and isinstance(node.arg, nodes.Const):
            fixed.add(node.arg.value)
        else:
            continue
        uses.remove(node.node)
    known = not uses and all(isinstance(name, str) for name in fixed)
    return names, sorted((names - {ROW}) | fixed) if known else None


_ENVIRONMENT = _Sandbox()
