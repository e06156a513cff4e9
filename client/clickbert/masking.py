"""`Masking`: takes what names a person out of a text before it is tokenized: addresses, numbers, patterns of your own.

It looks at characters alone, so it has limits, which README.md lists. What it looks for was weighed in
docs/decisions/0017-masking-by-patterns.md. Every search here takes time in proportion to the text, whatever the text:
repetitions are possessive or have an upper bound, and none begins in the middle of what it could have begun before.
"""

# ruff: noqa: RUF001 (full-width forms are meant)

import re
from collections.abc import Sequence
from dataclasses import dataclass

from clickbert.errors import InvalidInputError

# Words that every vocabulary has as a token, so that a masked text reads like any other text to the model.
EMAIL, PHONE, CARD, MASKED = "email", "phone", "card", "masked"

# Scripts without spaces between words: Thai to Khmer, Chinese, Japanese, and the planes of rare characters. A number
# or an ASCII address often stands directly beside such letters.
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_LETTER = rf"[^\W{_UNSPACED}]"  # or a digit or _, of any other script

# The local part may have more signs than these, but & / = ? : separate it from the rest of a web address. \u0300 to
# \u036f are accents that follow their letter.
_SIGNS = r".!#$%'*+^`{|}~\u0300-\u036f-"
_SPACED_LOCAL = rf"(?:{_LETTER}|[{_SIGNS}])"
_SPACED_LABEL = rf"(?:{_LETTER}|[\u0300-\u036f-])"
_BETWEEN = r"\s@＠.．,，、;；:：。！？/=?&\\<>()\[\]{}\"'“”„«»《》「」（）"
_ANY = rf"[^{_BETWEEN}]"  # letters, signs and accents of any script


def _address(local: str, label: str) -> re.Pattern[str]:
    # The last label is not digits alone: "3 pieces@2.50" is a price.
    dot = rf"[.．](?![0-9]++(?!{label}|[.．]))"
    return re.compile(rf"(?<!{local}){local}++[@＠]{label}++(?:{dot}{label}++)++")


# The second is for addresses in Chinese and its like; there the words before an address go with it.
_EMAILS = (_address(_SPACED_LOCAL, _SPACED_LABEL), _address(rf"(?:{_ANY}|[.．])", _ANY))

_BEFORE = rf"(?<!{_LETTER})"
_AFTER = rf"(?!{_LETTER})"
_DASH = r"\-\u2010-\u2015\u2212"
_BLANK = r" \t\u00a0\u2000-\u200b\u202f\u3000"
_GAP = rf"[{_BLANK}{_DASH}./()（）]{{0,3}}"


def _digit(first: int, last: int) -> str:
    """Return a pattern of one digit in this range. (Scripts that people type numbers in; \\d is any script's digit.)"""
    zeros = "0０٠۰०০๐"  # ASCII, full-width; Arabic, twice; Devanagari; Bengali; Thai
    return "[" + "".join(f"{chr(ord(zero) + first)}-{chr(ord(zero) + last)}" for zero in zeros) + "]"


def _more(least: int, most: int) -> str:
    return rf"(?:{_GAP}\d){{{least},{most}}}"


_ZERO, _NOT_ZERO, _TWO_UP = _digit(0, 0), _digit(1, 9), _digit(2, 9)
_SPLIT = rf"[{_BLANK}.{_DASH}]"
_YEAR = rf"(?:{_digit(1, 1)}{_digit(9, 9)}|{_digit(2, 2)}{_ZERO})\d\d(?!\d)"
# Not in the middle of a decimal number, a date or a longer number with separators.
_START = rf"{_BEFORE}(?<!\d[./{_DASH}])(?<!(?<!\d)\d,)"
# What every phone and card number has. Few texts do, and the patterns below cost ten times as much.
_EIGHT_DIGITS = re.compile(rf"\d{_more(7, 7)}")
_PHONE = re.compile(
    "|".join(
        (
            # With a country code.
            rf"{_BEFORE}(?:[+＋]|{_START}{_ZERO}{{2}}(?={_NOT_ZERO})){_more(8, 15)}{_AFTER}",
            # With a trunk 0, and no date: 05.11.2024, 05/2024.
            rf"{_START}(?!(?:\d{{1,2}}[./{_DASH}]){{1,2}}{_YEAR})(?:[(（](?=\d{{1,6}}[)）]))?"
            rf"{_ZERO}[{_BLANK}]?{_NOT_ZERO}{_more(7, 10)}{_AFTER}",
            # With an area code in brackets, which is no year.
            rf"{_START}(?:\d[{_BLANK}{_DASH}]?)?[(（](?!{_YEAR})\d{{2,5}}[)）]{_more(6, 9)}{_AFTER}",
            # The Americas: 212-555-0123. China's mobile numbers: 138 1234 5678. India's: 98765 43210.
            rf"{_START}(?:{_digit(1, 1)}{_SPLIT})?{_TWO_UP}\d\d{_SPLIT}\d{{3}}{_SPLIT}\d{{4}}{_AFTER}",
            rf"{_START}{_digit(1, 1)}{_digit(3, 9)}\d{_SPLIT}?\d{{4}}{_SPLIT}?\d{{4}}{_AFTER}",
            rf"{_START}{_digit(6, 9)}\d{{4}}{_SPLIT}\d{{5}}{_AFTER}",
        )
    )
)

_SHORTEST_CARD, _LONGEST_CARD = 13, 19  # digits
_SHORTEST_GROUP = 4  # of a card number's digits; only the last may be shorter
# Behind a + stands a phone number: one in ten of 13 digits has Luhn's check digit by chance.
_NUMBER = re.compile(rf"{_BEFORE}(?<![+＋])\d{{4,}}+{_AFTER}(?:[{_BLANK}{_DASH}]{{1,3}}\d++{_AFTER})*+")
_GROUP = re.compile(r"\d+")
_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)  # the digits' sum of twice a digit


@dataclass(frozen=True)
class Masking:
    """Puts a plain word in the place of e-mail addresses, phone and card numbers, and of what `patterns` match.

    The words are "email", "phone", "card" and "masked". A phone number is one with a country code (+49 30 1234567,
    0049...), with a trunk 0 (030 1234567), with an area code in brackets, or of a form that is usual in North America,
    China or India. A card number has 13 to 19 digits, with blanks or dashes or without, and Luhn's check digit.
    `patterns` are regular expressions, as text or compiled, looked for first; how long they take is up to them.

        >>> Masking()("Ask mia@example.com or call +49 30 1234567")
        'Ask email or call phone'

    Made once, it can be called from any thread. Raises `InvalidInputError` if a pattern is none.
    """

    emails: bool = True
    phones: bool = True
    cards: bool = True
    patterns: Sequence[str | re.Pattern[str]] = ()

    def __post_init__(self) -> None:
        if isinstance(self.patterns, str | bytes | re.Pattern) or not isinstance(self.patterns, Sequence):
            raise InvalidInputError(
                f"patterns is of type {type(self.patterns).__name__}, expected a list of regular expressions: wrap it"
                " in []"
            )
        compiled = tuple(_compiled(pattern, f"patterns[{index}]") for index, pattern in enumerate(self.patterns))
        object.__setattr__(self, "patterns", compiled)

    def __call__(self, text: str) -> str:
        """Return the text with what was found replaced."""
        for pattern in self.patterns:
            # A pattern may match nothing, at any place: there is nothing to hide.
            text = re.sub(pattern, lambda match: MASKED if match[0] else "", text)
        if self.emails and ("@" in text or "＠" in text):
            for pattern in _EMAILS:
                text = pattern.sub(EMAIL, text)
        if (self.cards or self.phones) and _EIGHT_DIGITS.search(text):
            if self.cards:
                text = _NUMBER.sub(_without_cards, text)
            if self.phones:
                text = _PHONE.sub(PHONE, text)
        return text


def _compiled(pattern: object, name: str) -> re.Pattern[str]:
    if not isinstance(pattern, str | re.Pattern) or isinstance(getattr(pattern, "pattern", pattern), bytes):
        raise InvalidInputError(f"{name} is of type {type(pattern).__name__}, expected a regular expression for text")
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as exc:
        raise InvalidInputError(f"{name} is {pattern!r}, which is no regular expression: {exc}") from exc


def _without_cards(match: re.Match[str]) -> str:
    """Return groups of digits with a word in the place of card numbers: they may stand among other numbers."""
    number = match[0]
    groups = list(_GROUP.finditer(number))
    parts, copied, first = [], 0, 0
    while first < len(groups):
        last = _end_of_card(groups, first)
        if last is not None:
            parts += [number[copied : groups[first].start()], CARD]
            copied = groups[last].end()
            first = last
        first += 1
    return "".join([*parts, number[copied:]])


def _end_of_card(groups: list[re.Match[str]], first: int) -> int | None:
    """Return the last group of the longest card number that begins with the group `first`."""
    digits, found = "", None
    for index in range(first, len(groups)):
        digits += groups[index][0]
        if len(digits) > _LONGEST_CARD:
            break
        if len(digits) >= _SHORTEST_CARD and _has_check_digit(digits):
            found = index
        if len(groups[index][0]) < _SHORTEST_GROUP:
            break
    return found


def _has_check_digit(digits: str) -> bool:
    """Tell whether the last digit is Luhn's. Zeros alone are no number."""
    values = [int(digit) for digit in reversed(digits)]
    return any(values) and not (sum(values[::2]) + sum(_DOUBLED[value] for value in values[1::2])) % 10
