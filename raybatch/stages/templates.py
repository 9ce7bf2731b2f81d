"""Prompt templates: Jinja in the immutable sandbox, with a limit on size and on time.

The sandbox keeps a template from reaching Python. What it does not limit is work: nested loops, macros that
call themselves, `'a' * 10**10`. So every loop body and macro checks a deadline, and every operation whose
result can be larger than what went in is measured before or after it is done (`_Budget`). No signal and no
thread is needed, so it holds in any thread of a worker.
"""

from __future__ import annotations

import functools
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from string import Formatter
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.environment import Template
from jinja2.filters import make_attrgetter
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from raybatch.stages.row_error import RowError

ROW = "row"  # the whole row as a dict, for columns whose names are no identifiers: {{ row["first name"] }}

# What one rendering may make in characters, intermediate results included: enough for any prompt, and little
# enough that a bomb stays small. An item of a list counts as 64, so that a million can be made: sorting them,
# which no deadline interrupts, takes a second.
_MAX_WORK = 64 << 20
_PER_ITEM = 64
_MAX_WIDTH = 1_000_000  # of padding, indents and precisions
_MAX_BITS = 1 << 16  # of integers that `*` and `**` make


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
            with _BUDGET.limited(timeout_s):  # constants are computed when it is compiled
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
            with _BUDGET.limited(self._timeout_s):
                text = self._text(values)
        except _OverTimeError:
            what = f"the template ran for more than {self._timeout_s:g} s of processor time"
            raise RowError("TemplateTimeout", what) from None
        except (_TooLargeError, MemoryError) as error:
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
                raise _TooLargeError(f"the prompt is larger than {self.max_bytes} bytes")
            _BUDGET.tick()
            chunks.append(chunk)
        text = "".join(chunks)
        if not text.isascii() and len(text.encode(errors="surrogatepass")) > self.max_bytes:
            raise _TooLargeError(f"the prompt is larger than {self.max_bytes} bytes")
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


class _OverTimeError(Exception):
    pass


class _TooLargeError(Exception):
    pass


class _NullError(Exception):
    pass


class _Budget(threading.local):
    """What the rendering in this thread may still use. Outside of `limited` there is no limit."""

    deadline = math.inf
    cpu_end = math.inf
    work = _MAX_WORK

    def limited(self, timeout_s: float) -> _Budget:
        self.cpu_end = time.thread_time() + timeout_s
        self.deadline = time.monotonic() + timeout_s
        self.work = _MAX_WORK
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.deadline = math.inf
        self.work = _MAX_WORK

    def tick(self) -> None:
        """Raise when time is up: by the processor's clock, so that a busy machine fails no row, but that is
        read only when the wall clock, which is cheap, says so."""
        if time.monotonic() > self.deadline:
            left = self.cpu_end - time.thread_time()
            if left <= 0:
                raise _OverTimeError
            self.deadline = time.monotonic() + left

    def spend(self, characters: int) -> None:
        self.work -= characters
        if self.work < 0:
            raise _TooLargeError(
                f"the template makes more than {_MAX_WORK} characters on its way to a prompt"
            )
        self.tick()


_BUDGET = _Budget()


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
        for name in ("random", "urlize", "xmlattr"):
            del self.filters[name]
        self.filters = {name: _measured(name, function) for name, function in self.filters.items()}
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
        _BUDGET.tick()
        return super().call_test(*args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            _refuse_large_product(left, right)
        elif operator == "**":
            _refuse_large_power(left, right)
        elif operator == "%" and isinstance(left, (str, bytes)):
            _refuse_wide_format(left, right if isinstance(right, tuple) else (right,))
        return _spent(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        # named as in Jinja, which passes keyword arguments of the template through
        _BUDGET.tick()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, (str, bytes, int)):
            args = _checked_method(owner, __obj.__name__, args)
        text = getattr(getattr(__obj, "__wrapped__", None), "__self__", None)
        if isinstance(text, str):  # the sandbox's str.format
            _refuse_wide_fields(text, (*args, *kwargs.values()))
        return _spent(super().call(__context, __obj, *args, **kwargs))


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
    _BUDGET.tick()
    return True


def _concat(parts: list[Any]) -> str:
    texts = [str(_printable(part)) for part in parts]
    _BUDGET.spend(sum(map(len, texts)))
    return "".join(texts)


def _spent(result: Any) -> Any:
    if isinstance(result, (str, bytes)):
        _BUDGET.spend(len(result))
    elif isinstance(result, (list, tuple)):
        _BUDGET.spend(_PER_ITEM * len(result))
    return result


def _measured(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter `function`, its arguments checked and its result counted."""
    before = 2 if hasattr(function, "jinja_pass_arg") else 1  # a context, and the filtered value

    @functools.wraps(function)
    def measured(*args: Any, **kwargs: Any) -> Any:
        _BUDGET.tick()
        value, options = args[before - 1], (*args[before:], *kwargs.values())
        if name in ("center", "indent", "batch", "slice", "round", "tojson"):
            _refuse_wide(options)
        if name == "indent":
            widest = max((len(o) if isinstance(o, str) else int(o) for o in options), default=0)
            _BUDGET.spend(str(value).count("\n") * widest)
        elif name == "replace":
            _spend_replacement(str(value), options)
        elif name == "format":
            _refuse_wide_format(str(value), options)
        elif name == "sum":
            _refuse_sum_of_lists(options)
        elif name == "join":
            args, kwargs = _metered_join(args, kwargs)
        return _spent(function(*args, **kwargs))

    return measured


def _metered_join(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """`join`'s arguments, with items that are counted as they are taken."""
    eval_ctx, value, *rest = args
    separator = rest[0] if rest else kwargs.get("d", "")
    attribute = rest[1] if len(rest) > 1 else kwargs.get("attribute")
    items: Iterable[Any] = value
    if attribute is not None:
        items = map(make_attrgetter(eval_ctx.environment, attribute), value)
    return (eval_ctx, _metered(items, len(str(separator))), separator), {}


def _metered(items: Iterable[Any], separator: int) -> Iterator[Any]:
    for item in items:
        _BUDGET.spend(len(str(item)) + separator)
        yield item


def _checked_method(owner: Any, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a method of a string or number, unless its result could be huge."""
    if name == "translate":
        raise TypeError("translate is not available in templates; use replace")
    if name == "join" and args:
        return (list(_metered(args[0], len(owner))), *args[1:])
    if name == "replace":
        _spend_replacement(owner, args)
    elif name == "expandtabs":
        _refuse_wide(args)
        _BUDGET.spend(owner.count("\t") * int(args[0] if args else 8))
    else:
        _refuse_wide(args)
    return args


def _spend_replacement(value: Any, options: tuple[Any, ...]) -> None:
    if len(options) >= 2:
        old, new = (o if isinstance(o, type(value)) else type(value)(o) for o in options[:2])
        _BUDGET.spend(value.count(old) * len(new))


def _refuse_large_product(left: Any, right: Any) -> None:
    for many, times in ((left, right), (right, left)):
        if isinstance(many, (str, bytes, list, tuple)) and isinstance(times, int):
            size = len(many) * (1 if isinstance(many, (str, bytes)) else _PER_ITEM)
            if size * times > _MAX_WORK:
                raise _TooLargeError(f"the template repeats a value {times} times")
    if (
        isinstance(left, int)
        and isinstance(right, int)
        and left.bit_length() + right.bit_length() > _MAX_BITS
    ):
        raise _TooLargeError("the template multiplies integers without bound")


def _refuse_large_power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > _MAX_BITS:
        raise _TooLargeError(f"the template computes {left} ** {right}")


def _refuse_wide(options: Iterable[Any]) -> None:
    for option in options:
        if isinstance(option, int) and abs(option) > _MAX_WIDTH:
            raise _TooLargeError(f"the template asks for a width or count of {option}; at most {_MAX_WIDTH}")


def _refuse_wide_format(text: str | bytes, values: Iterable[Any]) -> None:
    """`%` with a width: '%1000000000d' % 1, or '%*d' % (1000000000, 1)."""
    plain = text.decode("latin-1") if isinstance(text, bytes) else text
    for match in re.finditer(r"%(?:\([^)]*\))?[-#0 +]*(\d+|\*)?(?:\.(\d+|\*))?", plain):
        for width in match.groups():
            _refuse_wide(values if width == "*" else [int((width or "0")[:18])])


def _refuse_wide_fields(text: str, values: Iterable[Any]) -> None:
    """`'{:>1000000000}'.format(x)`, or `'{:>{}}'.format(x, 1000000000)`."""
    for _, _, spec, _ in Formatter().parse(text):
        widths = [int(digits[:18]) for digits in re.findall(r"\d+", spec or "")]
        _refuse_wide([*values, *widths] if "{" in (spec or "") else widths)


def _refuse_sum_of_lists(options: Iterable[Any]) -> None:
    if any(isinstance(option, (list, tuple)) for option in options):
        raise TypeError("sum adds numbers; use + for lists")  # it would copy what it has for each item


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
