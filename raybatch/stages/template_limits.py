"""How much work a template may do: time for a rendering, and size for what it makes on the way.

The deadline is looked at wherever a template comes by: in each loop and macro, and at each call, filter and
test. Between two looks only single operations run; those whose result can be much larger than what goes in
are measured before they are done, or refused.
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

from jinja2.filters import make_attrgetter

# What one rendering may make in characters, intermediate results included: enough for any prompt, and little
# enough that a bomb stays small. An item of a list counts as 16, so that a million can be made: sorting them,
# which no deadline interrupts, takes a second.
_MAX_WORK = 16 << 20
_PER_ITEM = 16
_MAX_WIDTH = 1_000_000  # of padding, indents and precisions
_MAX_BITS = 1 << 16  # of integers that `*` and `**` make


class OverTimeError(Exception):
    """The rendering has used up its time."""


class TooLargeError(Exception):
    """The rendering makes, or would make, something too large; `str()` says what."""


class Budget(threading.local):
    """What the rendering in this thread may still use. Outside of `limited` there is no limit."""

    deadline = math.inf
    cpu_end = math.inf
    work = _MAX_WORK

    def limited(self, timeout_s: float) -> Budget:
        """`with BUDGET.limited(1.0):` one rendering, in this thread."""
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
                raise OverTimeError
            self.deadline = time.monotonic() + left

    def spend(self, characters: int) -> None:
        """Account for something made; raise when it is too much, or when time is up."""
        self.work -= characters
        if self.work < 0:
            raise TooLargeError(f"the template makes more than {_MAX_WORK} characters on its way to a prompt")
        self.tick()


BUDGET = Budget()


def spent(result: Any) -> Any:
    """`result`, accounted for."""
    if isinstance(result, (str, bytes)):
        BUDGET.spend(len(result))
    elif isinstance(result, (list, tuple)):
        BUDGET.spend(_PER_ITEM * len(result))
    return result


def measured_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter `function`, its arguments checked and its result counted."""
    before = 2 if hasattr(function, "jinja_pass_arg") else 1  # a context, and the filtered value

    @functools.wraps(function)
    def measured(*args: Any, **kwargs: Any) -> Any:
        BUDGET.tick()
        value, options = args[before - 1], (*args[before:], *kwargs.values())
        if name in ("wordwrap", "striptags", "title", "wordcount"):  # slow: a regular expression per word
            BUDGET.spend(_PER_ITEM * len(str(value)))
        if name in ("center", "indent", "batch", "slice", "round", "tojson"):
            _refuse_wide(options)
        if name == "indent":
            widest = max((len(o) if isinstance(o, str) else int(o) for o in options), default=0)
            BUDGET.spend(str(value).count("\n") * widest)
        elif name == "replace":
            _spend_replacement(str(value), options)
        elif name == "format":
            refuse_wide_format(str(value), options)
        elif name == "sum":
            _refuse_sum_of_lists(options)
        elif name == "join":
            args, kwargs = _metered_join(args, kwargs)
        return spent(function(*args, **kwargs))

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
        BUDGET.spend(len(str(item)) + separator)
        yield item


def checked_arguments(
    owner: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, ...]:
    """`args` of a method `name` of the string or number `owner`, unless its result could be huge."""
    options = (*args, *kwargs.values())
    if name == "translate":
        raise TypeError("translate is not available in templates; use replace")
    if name == "join" and args:
        return (list(_metered(args[0], len(owner))), *args[1:])
    if name == "replace":
        _spend_replacement(owner, args)
        return args
    _refuse_wide(options)
    if name == "expandtabs":
        BUDGET.spend(owner.count("\t" if isinstance(owner, str) else b"\t") * int([*options, 8][0]))
    return args


def _spend_replacement(value: Any, options: tuple[Any, ...]) -> None:
    if len(options) >= 2:
        old, new = (o if isinstance(o, type(value)) else type(value)(o) for o in options[:2])
        BUDGET.spend(value.count(old) * len(new))


def refuse_large_product(left: Any, right: Any) -> None:
    """`left * right`, of texts, lists and integers."""
    for many, times in ((left, right), (right, left)):
        if isinstance(many, (str, bytes, list, tuple)) and isinstance(times, int):
            size = len(many) * (1 if isinstance(many, (str, bytes)) else _PER_ITEM)
            if size * times > _MAX_WORK:
                raise TooLargeError(f"the template repeats a value {times} times")
    if (
        isinstance(left, int)
        and isinstance(right, int)
        and left.bit_length() + right.bit_length() > _MAX_BITS
    ):
        raise TooLargeError("the template multiplies integers without bound")


def refuse_large_power(left: Any, right: Any) -> None:
    """`left ** right`, of integers."""
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > _MAX_BITS:
        raise TooLargeError(f"the template computes {left} ** {right}")


def _refuse_wide(options: Iterable[Any]) -> None:
    for option in options:
        if isinstance(option, int) and abs(option) > _MAX_WIDTH:
            raise TooLargeError(f"the template asks for a width or count of {option}; at most {_MAX_WIDTH}")


def refuse_wide_format(text: str | bytes, values: Iterable[Any]) -> None:
    """`%` with a width: '%1000000000d' % 1, or '%*d' % (1000000000, 1)."""
    plain = text.decode("latin-1") if isinstance(text, bytes) else text
    for match in re.finditer(r"%(?:\([^)]*\))?[-#0 +]*(\d+|\*)?(?:\.(\d+|\*))?", plain):
        for width in match.groups():
            _refuse_wide(values if width == "*" else [int((width or "0")[:18])])


def refuse_wide_fields(text: str, values: Iterable[Any]) -> None:
    """`'{:>1000000000}'.format(x)`, or `'{:>{}}'.format(x, 1000000000)`."""
    for _, _, spec, _ in Formatter().parse(text):
        widths = [int(digits[:18]) for digits in re.findall(r"\d+", spec or "")]
        _refuse_wide([*values, *widths] if "{" in (spec or "") else widths)


def _refuse_sum_of_lists(options: Iterable[Any]) -> None:
    if any(isinstance(option, (list, tuple)) for option in options):
        raise TypeError("sum adds numbers; use + for lists")  # it would copy what it has for each item
