"""Prompt templates: what they write, what they refuse, and that no template runs for ever."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from raybatch.stages.row_error import RowError
from raybatch.stages.templates import PromptTemplate


def template(source: str, *, max_bytes: int = 1 << 20, timeout_s: float = 0.2) -> PromptTemplate:
    return PromptTemplate(source, max_bytes=max_bytes, timeout_s=timeout_s)


def failure(source: str, row: dict[str, Any] | None = None, **limits: Any) -> RowError:
    with pytest.raises(RowError) as caught:
        template(source, **limits).render(row or {})
    return caught.value


@pytest.mark.parametrize(
    ("source", "row", "text"),
    [
        ("Say {{ a }}!", {"a": "hello"}, "Say hello!"),
        ("no variables", {}, "no variables"),
        ("{{ a }}", {"a": "<b>&"}, "<b>&"),
        ("{{ n + 1 }}", {"n": 1}, "2"),
        ("{{ s ~ n }}", {"s": "x", "n": 1}, "x1"),
        ("{% for x in xs %}{{ loop.index }}{{ x.name }};{% endfor %}", {"xs": [{"name": "p"}]}, "1p;"),
        ("{% for x in xs if x > 1 %}{{ x }}{% endfor %}", {"xs": [1, 2, 3]}, "23"),
        ("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(1) }}{{ f(2) }}", {}, "[1][2]"),
        ("{{ xs|join(', ') }}", {"xs": ["p", "q"]}, "p, q"),
        ("{{ xs|join('+', attribute='v') }}", {"xs": [{"v": 1}, {"v": 2}]}, "1+2"),
        ("{{ ', '.join(xs) }}", {"xs": ["p", "q"]}, "p, q"),
        (
            "{{ '%s-%03d' % ('a', 7) }}|{{ '%.1f'|format(2.25) }}|{{ '{:>3}'.format('a') }}",
            {},
            "a-007|2.2|  a",
        ),
        ("{{ a|replace('x', 'yy') }}{{ a.replace('x', 'z') }}", {"a": "xax"}, "yyayyzaz"),
        ("{{ a|default('none') }}", {}, "none"),
        ("{{ order.items }}", {"order": {"items": 3}}, "3"),
        ("{{ order.keys()|list }}", {"order": {"a": 3}}, "['a']"),
        ("{{ row['first name'] }} {{ row.last }}", {"first name": "A", "last": "B"}, "A B"),
        ("{{ row }}", {"row": "a column of that name"}, "a column of that name"),
        ("{{ '7' * 3 }}{{ 2 ** 10 }}", {}, "7771024"),
    ],
)
def test_a_template_writes_what_jinja_writes(source: str, row: dict[str, Any], text: str) -> None:
    assert template(source).render(row) == text


def test_a_column_that_is_missing_is_named() -> None:
    error = failure("Dear {{ naem }}", {"name": "A"})
    assert (error.type, error.message) == ("TemplateError", "line 1: 'naem' is undefined")


def test_an_error_names_the_line_of_the_template() -> None:
    assert failure("one\ntwo\n{{ 1 / n }}", {"n": 0}).message == "line 3: ZeroDivisionError: division by zero"


def test_a_null_is_not_written_as_none() -> None:
    error = failure("Summarise: {{ body }}", {"body": None})
    assert error.type == "TemplateError"
    assert "'body' is null" in error.message


def test_a_null_can_be_tested_and_replaced() -> None:
    source = "{% if body %}{{ body }}{% else %}nothing{% endif %} {{ body or 'at all' }}"
    assert template(source).render({"body": None}) == "nothing at all"


def test_a_method_that_is_not_called_is_an_error() -> None:
    assert "'upper' is a function; call it with ()" in failure("{{ a.upper }}", {"a": "x"}).message


@pytest.mark.parametrize(
    "source",
    [
        "{{ a.__class__ }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ '{0.__class__}'.format(a) }}",
        "{{ xs.append(1) }}",
        "{{ a|attr('__class__') }}",
    ],
)
def test_the_sandbox_keeps_python_out_of_reach(source: str) -> None:
    assert failure(source, {"a": "x", "xs": []}).type == "TemplateError"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("line one\n{{ a", "line 2: unexpected end of template"),
        ("{{ a|uper }}", "line 1: No filter named 'uper'"),
        ("{% include 'other' %}", "include, import and extends have nothing to load"),
        ("{% extends base %}", "include, import and extends have nothing to load"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nested too deeply"),
    ],
)
def test_a_template_that_cannot_work_is_refused_when_it_is_compiled(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        template(source)


@pytest.mark.parametrize(
    ("source", "reads"),
    [
        ("{{ b }}{{ a.x }}", ["a", "b"]),
        ("{% set c = a %}{{ c }}", ["a"]),
        ("{% for x in xs %}{{ x }}{% endfor %}{{ range(3)|list }}", ["xs"]),
        ("{{ row.a }}{{ row['b c'] }}{{ d }}", ["a", "b c", "d"]),
        ("{{ row }}", None),
        ("{% for key in row %}{{ row[key] }}{% endfor %}", None),
        ("{{ row.a }}{{ row|length }}", None),
    ],
)
def test_the_columns_of_a_template_are_known_before_it_runs(source: str, reads: list[str] | None) -> None:
    assert template(source).reads == reads


ENDLESS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{{ '' }}{% endfor %}{% endfor %}",
    "{% set x %}{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}{% endset %}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{% for x in [60] recursive %}{% if x %}{{ loop([x - 1, x - 1]) }}{% endif %}{% endfor %}",
    "{% for i in range(99999) %}{% set x = range(99999)|select('odd')|sum %}{% endfor %}",
    "{% for i in range(99999) %}{% set x = range(99999)|map('abs')|sum %}{% endfor %}",
]


@pytest.mark.parametrize("source", ENDLESS)
def test_a_template_that_loops_for_ever_is_stopped(source: str) -> None:
    started = time.thread_time()
    error = failure(source, timeout_s=0.1)
    assert error.type == "TemplateTimeout"
    assert time.thread_time() - started < 2  # 0.1 s, and what one step between two checks takes


def test_a_template_is_stopped_in_another_thread_too() -> None:
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(failure(ENDLESS[0], timeout_s=0.1).type))
    thread.start()
    thread.join(timeout=30)
    assert found == ["TemplateTimeout"]


def test_a_row_is_not_blamed_for_a_busy_machine() -> None:
    class Slow:
        def __str__(self) -> str:
            waiting.wait(0.3)  # wall-clock time without processor time
            return "waited"

    waiting = threading.Event()
    assert template("{{ a }}{{ a }}", timeout_s=0.2).render({"a": Slow()}) == "waitedwaited"


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10**10 }}",
        "{{ [1] * 10**10 }}",
        "{{ 10 ** (10**9) }}",
        "{{ 'a'|center(10**10) }}",
        "{{ 'a'.ljust(10**10) }}{{ 'a'.zfill(10**10) }}",
        "{{ '%1000000000d'|format(1) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (10**9, 1) }}",
        "{{ '{:>1000000000}'.format('a') }}",
        "{{ '{:>{}}'.format('a', 10**9) }}",
        "{{ ('a' * 999999)|replace('a', 'b' * 999999) }}",
        "{{ ('a' * 999999).replace('a', 'b' * 999999) }}",
        "{{ ('b' * 999999).join(['a'] * 999) }}",
        "{{ (['b' * 999999] * 999)|join(',') }}",
        "{{ ('\n' * 99999)|indent(999999) }}",
        "{{ ('\t' * 999999).expandtabs(999999) }}",
        "{{ 1.5|round(10**9) }}",
        "{{ [1]|batch(10**9, 'x')|list }}{{ [1]|slice(10**9)|list }}",
        "{{ [1]|tojson(10**9) }}",
        "{{ (5).to_bytes(10**10, 'big') }}",
        "{{ (5).to_bytes(length=10**10, byteorder='big') }}",
        "{{ '\t'.expandtabs(tabsize=10**10) }}",
        "{{ ('word ' * 999999)|wordwrap }}",
        "{{ range(99999)|map('center', 999999)|map('length')|sum }}",
        "{% set v = namespace(x='x') %}{% for i in range(64)%}{% set v.x = v.x ~ v.x %}{% endfor %}{{ v.x }}",
        "{% set v = namespace(x='x') %}{% for i in range(64)%}{% set v.x = v.x + v.x %}{% endfor %}{{ v.x }}",
        "{% set v = namespace(x=3) %}{% for i in range(64)%}{% set v.x = v.x * v.x %}{% endfor %}{{ v.x }}",
    ],
)
def test_a_template_that_grows_without_bound_is_stopped_at_once(source: str) -> None:
    started = time.thread_time()
    assert failure(source, timeout_s=60).type == "PromptTooLarge"
    assert time.thread_time() - started < 5


def test_a_range_without_end_is_an_error_of_the_row() -> None:
    error = failure("{% for i in range(10**9) %}x{% endfor %}")
    assert error.type == "TemplateError"
    assert "Range too big" in error.message


def test_a_prompt_of_the_greatest_size_is_rendered() -> None:
    assert template("{{ a }}", max_bytes=10).render({"a": "x" * 10}) == "x" * 10


@pytest.mark.parametrize("text", ["x" * 11, "é" * 6, "😀" * 3])
def test_a_prompt_above_the_greatest_size_is_refused_by_its_bytes(text: str) -> None:
    error = failure("{{ a }}", {"a": text}, max_bytes=10)
    assert (error.type, error.message) == ("PromptTooLarge", "the prompt is larger than 10 bytes")


def test_a_large_column_can_be_shortened_into_a_prompt() -> None:
    assert template("{{ a[:3] }}", max_bytes=10).render({"a": "x" * 5_000_000}) == "xxx"


def test_limits_of_one_rendering_do_not_reach_the_next() -> None:
    good = template("{{ 'ab' * 3 }}")
    failure(ENDLESS[0], timeout_s=0.05)
    failure("{{ 'a' * 10**10 }}")
    assert good.render({}) == "ababab"


def test_simple_prompts_are_rendered_fast() -> None:
    plain = template("Summarise this ticket:\n{{ body }}", timeout_s=1)
    rows = [{"body": f"ticket {i}"} for i in range(10_000)]
    started = time.process_time()
    prompts = [plain.render(row) for row in rows]
    assert time.process_time() - started < 0.5
    assert prompts[9_999] == "Summarise this ticket:\nticket 9999"
