"""Sentences that contain one date or one amount of money, each with its exact ISO answer.

    "invoice no. 4471 of 3rd March 2021 was late"     ->  2021-03-03
    "the repair came to twelve hundred euros"         ->  EUR 1200.00

The answers are known because the sentences are made from them, so a program can check a model's output.

Conventions, where everyday writing is ambiguous:

- Numeric dates with slashes or dots are day first (`03/04/2021` is 3 April) unless the year comes first.
- A two-digit year is 1950 to 2049.
- A lone `,` or `.` before exactly three digits groups thousands (`1.250` is 1250); before one or two digits
  it is the decimal sign. `'` and a space inside a number group thousands. `k` is a thousand, `m` a million.
- `$` is USD, `€` is EUR, `£` is GBP; "dollars", "euros", "pounds" and "francs" are USD, EUR, GBP and CHF.

Held-out cases are disjoint from training cases **by answer**: a keyed hash of the answer string alone decides
which split an answer belongs to (about one in ten is held out), whatever the surface form or the sentence
around it. So no held-out answer, and therefore no held-out (value, form) pair and no held-out text, occurs in
training. Surface forms and sentence templates are shared by both splits: held-out accuracy says how well the
rules carry over to unseen dates and amounts, not to unseen phrasing.
"""

from __future__ import annotations

import datetime
import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

__all__ = ["Case", "Split", "cases", "split_of"]

Split = Literal["train", "held_out"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One line of text and the only right answer to it."""

    id: str
    """Unique within one (split, seed): `<split>-<seed>-<index>`."""
    text: str
    """One line of UTF-8 text, no more than about 120 characters."""
    answer: str
    """`YYYY-MM-DD`, or a currency code and an amount with two decimals: `EUR 1250.50`."""


def cases(*, count: int, seed: int, split: Split) -> Iterator[Case]:
    """Yield `count` cases, the same ones for the same arguments on every platform.

    A shorter call yields a prefix of a longer one. Answers and texts may repeat; ids do not.
    """
    rng = random.Random(f"{split}:{seed}")
    for index in range(count):
        text, answer = _draw(rng, split=split)
        yield Case(id=f"{split}-{seed}-{index:07d}", text=text, answer=answer)


def split_of(answer: str) -> Split:
    """The split that an answer belongs to, in whatever form it is written."""
    digest = hashlib.blake2b(answer.encode(), digest_size=4, key=b"normalise").digest()
    return "held_out" if int.from_bytes(digest, "big") % 10 == 0 else "train"


def _draw(rng: random.Random, *, split: Split) -> tuple[str, str]:
    """A sentence and its answer; draws values (for held-out, ten on average) until one belongs to `split`."""
    make, sentences = (_date, _DATE_SENTENCES) if rng.random() < 0.5 else (_money, _MONEY_SENTENCES)
    while True:
        surface, answer = make(rng)
        if split_of(answer) == split:
            return _sentence(rng, template=rng.choice(sentences), surface=surface), answer


# --- sentences ----------------------------------------------------------------------------------------------

_NAMES = ("Ada", "Bruno", "Chen", "Dalia", "Emeka", "Fatima", "Goran", "Hana", "Ivan", "Jo", "Kaya", "Lena")
_THINGS = (
    *("invoice", "contract", "parcel", "repair", "ticket"),
    *("licence", "report", "lease", "order", "permit"),
)

# {x} is the date or the amount, {name} and {thing} are fillers, {ref} is a number that is not in the answer.
_DATE_SENTENCES = (
    "{x}",
    "date: {x}",
    "{thing} no. {ref}, dated {x}",
    "the {thing} of {x} was late",
    "{name} signed the {thing} on {x}",
    "we heard from {name} on {x}, and again a week later",
    "{thing} #{ref} expires on {x}",
    "please send the {thing} by {x} at the latest",
    "according to {name}, it began on {x}",
    "{name} was born on {x}.",
    "On {x} the {thing} was returned to {name}.",
    "Received {x} (ref. {ref})",
    "until {x}, {name} had room {ref}",
    "Since {x} there has been no {thing}.",
    "the meeting of {x} was moved to room {ref}",
    "[{ref}] {name}: {x}",
)
_MONEY_SENTENCES = (
    "{x}",
    "total: {x}",
    "{thing} no. {ref} over {x}",
    "we paid {x}",
    "the {thing} came to {x}",
    "{name} owes us {x} for the {thing}",
    "{name} transferred {x} this morning",
    "the lost {thing} was worth {x}",
    "please refund {x} to {name}.",
    "{thing} #{ref}: {x}, paid in full",
    "It cost {x}, said {name}.",
    "at {x} the {thing} was a bargain",
    "{name} in room {ref} offered {x}",
    "Balance due {x} (ref. {ref})",
    "the {thing} went for {x} at auction",
    "[{ref}] {name} bid {x}",
)


def _sentence(rng: random.Random, *, template: str, surface: str) -> str:
    return template.format(
        x=surface, name=rng.choice(_NAMES), thing=rng.choice(_THINGS), ref=rng.randrange(100, 10_000)
    )


# --- numbers in words ---------------------------------------------------------------------------------------

_SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"),
    *("twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_ORDINAL = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth"}
_ORDINAL |= {"nine": "ninth", "twelve": "twelfth", "twenty": "twentieth", "thirty": "thirtieth"}


def _words(number: int) -> str:
    """British English for 0 to 9,999: `two thousand and five`, `one hundred and twelve`."""
    if number < 20:
        return _SMALL[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return f"{_TENS[tens]}-{_SMALL[ones]}" if ones else _TENS[tens]
    size, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    high, rest = divmod(number, size)
    joint = " and " if rest < 100 else " "
    return f"{_words(high)} {name}" + (f"{joint}{_words(rest)}" if rest else "")


def _ordinal_words(number: int) -> str:
    """`twenty-first` for 21; 1 to 31."""
    head, dash, last = _words(number).rpartition("-")
    return head + dash + _ORDINAL.get(last, f"{last}th")


def _ordinal(number: int) -> str:
    """`21st` for 21; 1 to 31."""
    suffix = "th" if 11 <= number <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


# --- dates --------------------------------------------------------------------------------------------------

# Spelt out: `calendar.month_name` follows the process's locale.
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_FEASTS = (  # month, day, name
    (1, 1, "New Year's Day"),
    (7, 14, "Bastille Day"),
    (10, 31, "Halloween"),
    (12, 24, "Christmas Eve"),
    (12, 25, "Christmas Day"),
    (12, 31, "New Year's Eve"),
)


def _month(day: datetime.date) -> str:
    return _MONTHS[day.month - 1]


def _year_words(day: datetime.date) -> str:
    """`nineteen eighty-four`, `nineteen oh five`, `nineteen hundred`, `two thousand and nine`, …"""
    century, rest = divmod(day.year, 100)
    if 2000 <= day.year < 2010:
        return _words(day.year)
    if rest == 0:
        return f"{_words(century)} hundred"
    return f"{_words(century)} oh {_words(rest)}" if rest < 10 else f"{_words(century)} {_words(rest)}"


_DATE_FORMS: tuple[Callable[[datetime.date], str], ...] = (
    lambda d: d.isoformat(),
    lambda d: f"{d:%d/%m/%Y}",
    lambda d: f"{d.day}/{d.month}/{d.year}",
    lambda d: f"{d.day}.{d.month}.{d.year}",
    lambda d: f"{d:%d.%m.%Y}",
    lambda d: f"{d:%Y/%m/%d}",
    lambda d: f"{d:%Y%m%d}",
    lambda d: f"{d.day} {_month(d)} {d.year}",
    lambda d: f"{_ordinal(d.day)} {_month(d)} {d.year}",
    lambda d: f"{_ordinal(d.day)} of {_month(d)} {d.year}",
    lambda d: f"the {_ordinal(d.day)} of {_month(d)}, {d.year}",
    lambda d: f"{_month(d)} {d.day}, {d.year}",
    lambda d: f"{_month(d)} {_ordinal(d.day)}, {d.year}",
    lambda d: f"{_month(d)[:3]} {d.day}, {d.year}",
    lambda d: f"{_month(d)[:3]}. {d.day}, {d.year}",
    lambda d: f"{d.day} {_month(d)[:3]} {d.year}",
    lambda d: f"{d.day}-{_month(d)[:3]}-{d.year}",
    lambda d: f"{d.day:02d}-{_month(d)[:3].upper()}-{d.year}",
    lambda d: f"{_WEEKDAYS[d.weekday()]}, {d.day} {_month(d)} {d.year}",
    lambda d: f"{_WEEKDAYS[d.weekday()][:3]} {_month(d)[:3]} {d.day} {d.year}",
    lambda d: f"the {_ordinal_words(d.day)} of {_month(d)} {d.year}",
    lambda d: f"{_month(d)} the {_ordinal_words(d.day)}, {d.year}",
    lambda d: f"the {_ordinal_words(d.day)} of {_month(d)}, {_year_words(d)}",
    lambda d: f"{_month(d)} the {_ordinal_words(d.day)}, {_year_words(d)}",
)
_SHORT_YEAR_FORMS: tuple[Callable[[datetime.date], str], ...] = (
    lambda d: f"{d.day} {_month(d)[:3]} '{d:%y}",
    lambda d: f"{_ordinal(d.day)} {_month(d)} '{d:%y}",
    lambda d: f"{d:%d/%m/%y}",
)


def _date(rng: random.Random) -> tuple[str, str]:
    """A date from 1900 to 2099 in one of its surface forms, and its ISO form."""
    day = datetime.date(1900, 1, 1) + datetime.timedelta(days=rng.randrange(73_049))
    kind = rng.random()
    if kind < 0.05:
        month, number, feast = rng.choice(_FEASTS)
        day = day.replace(month=month, day=number)
        return f"{feast} {day.year}", day.isoformat()
    if kind < 0.17 and 1950 <= day.year < 2050:
        return rng.choice(_SHORT_YEAR_FORMS)(day), day.isoformat()
    return rng.choice(_DATE_FORMS)(day), day.isoformat()


# --- money --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Currency:
    code: str
    mark: str
    """What stands before a number: `$`, or `CHF ` with its space."""
    noun: str
    cents: str


_CURRENCIES = (
    _Currency(code="EUR", mark="€", noun="euros", cents="cents"),
    _Currency(code="USD", mark="$", noun="dollars", cents="cents"),
    _Currency(code="GBP", mark="£", noun="pounds", cents="pence"),
    _Currency(code="CHF", mark="CHF ", noun="francs", cents="centimes"),
)


def _grouped(cents: int, *, thousands: str, decimal: str, short: bool) -> str:
    """`1,250.50` with the given signs; `short` leaves out `.00`."""
    whole, rest = divmod(cents, 100)
    number = f"{whole:,}".replace(",", thousands)
    return number if short and rest == 0 else f"{number}{decimal}{rest:02d}"


def _in_digits(rng: random.Random, money: _Currency) -> tuple[str, int]:
    """An amount below ten million, with any cents: `$1,250.50`, `1.250,50 EUR`, `CHF 1'250.50`, …"""
    cents = rng.randrange(100, 10 ** rng.randint(3, 9))
    if rng.random() < 0.4:
        cents -= cents % 100
    thousands, decimal = rng.choice(((",", "."), ("", "."), (".", ","), (" ", ","), ("'", ".")))
    number = _grouped(cents, thousands=thousands, decimal=decimal, short=rng.random() < 0.7)
    around = rng.choice((f"{money.mark}{number}", f"{money.code} {number}", f"{number} {money.code}"))
    return rng.choice((around, f"{number} {money.noun}")), cents


def _in_thousands(rng: random.Random, money: _Currency) -> tuple[str, int]:
    """`EUR 3.4k`, `£1.25m`, `3.4 million euros`: up to three digits before the point, at most two after."""
    size, suffix, word = rng.choice(((1_000, "k", "thousand"), (1_000_000, "m", "million")))
    hundredths = rng.randrange(100, 10 ** rng.randint(3, 5))
    hundredths -= hundredths % rng.choice((1, 10, 100))
    number = f"{hundredths // 100}.{hundredths % 100:02d}".rstrip("0").rstrip(".")
    surface = rng.choice(
        (
            f"{money.mark}{number}{suffix}",
            f"{money.code} {number}{suffix}",
            f"{money.mark}{number} {word}",
            f"{number} {word} {money.noun}",
        )
    )
    return surface, hundredths * size


def _in_words(rng: random.Random, money: _Currency) -> tuple[str, int]:
    """`twelve hundred euros`, `three and a half million pounds`, `twelve dollars and fifty cents`, …"""
    kind = rng.randrange(5)
    if kind == 0:
        hundreds = rng.choice([n for n in range(11, 100) if n % 10])
        return f"{_words(hundreds)} hundred {money.noun}", hundreds * 100_00
    if kind == 1:
        whole = rng.randrange(2, 10 ** rng.randint(2, 4))
        return f"{_words(whole)} {money.noun}", whole * 100
    if kind == 2:
        whole, rest = rng.randrange(2, 100), rng.randrange(2, 100)
        return f"{_words(whole)} {money.noun} and {_words(rest)} {money.cents}", whole * 100 + rest
    size, word = rng.choice(((1_000, "thousand"), (1_000_000, "million")))
    whole = rng.randrange(2, 100)
    if kind == 3:
        return f"{_words(whole)} {word} {money.noun}", whole * size * 100
    return f"{_words(whole)} and a half {word} {money.noun}", whole * size * 100 + size * 50


def _money(rng: random.Random) -> tuple[str, str]:
    """An amount in one of four currencies and one of its surface forms, and its ISO form."""
    money = rng.choice(_CURRENCIES)
    make = rng.choices((_in_digits, _in_thousands, _in_words), weights=(5, 3, 4))[0]
    surface, cents = make(rng, money)
    return surface, f"{money.code} {cents // 100}.{cents % 100:02d}"
