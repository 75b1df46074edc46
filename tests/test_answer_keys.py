"""Which answers are counted as the same."""

from __future__ import annotations

from typing import get_args

import pytest

from selfjudge.answer_keys import ANSWER_KEYS, exact, final_number, last_line, normalised
from selfjudge.config import SelectConfig


def test_the_registry_is_what_the_option_takes() -> None:
    assert tuple(ANSWER_KEYS) == get_args(SelectConfig.model_fields["agreement_key"].annotation)


def test_exact_keeps_every_letter() -> None:
    assert exact(" Yes.\n") == " Yes.\n"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("Yes", "yes"),
        ("  yes.\n", "yes"),
        ('"YES!"', "yes"),
        ("**Yes**, it\n\tis ...", "yes**, it is"),
        ("Stra\u00dfe", "strasse"),
        ("-5", "-5"),  # not 5
        (".5", ".5"),
        ("5 %", "5 %"),
        ("?!", "?!"),  # nothing would be left
        ("", ""),
    ],
)
def test_normalised(text: str, key: str) -> None:
    assert normalised(text) == key


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("6 x 7 = 42", "42"),
        ("It is 42.", "42"),
        ("42.00", "42"),
        ("042", "42"),
        ("1,000", "1000"),
        ("$1,234,567.50 in all", "1234567.5"),
        ("first 1, then 2,3", "3"),
        ("1,0000", "0"),  # no thousands: 1 and 0000
        ("x = -5", "-5"),
        ("x = \u22125", "-5"),
        ("7-5", "5"),  # a difference, not a sign
        ("-0.0", "0"),
        (".50", "0.5"),
        ("version 1.2.3", "3"),
        ("1/2", "1/2"),
        ("2/4", "2/4"),  # left alone, not reduced
        ("2 1/2", "2 1/2"),
        (r"so \frac{3}{2}.", r"\frac{3}{2}"),  # not 2
        (r"1\dfrac{3}{2}", r"1\dfrac{3}{2}"),
        ("1.5e3", "1.5e3"),
        ("None, I think.", "none, i think"),
    ],
)
def test_final_number(text: str, key: str) -> None:
    assert final_number(text) == key


@pytest.mark.parametrize(
    ("text", "key"),
    [("a\nb\n\n The answer is B. \n\n", "the answer is b"), ("one", "one"), ("\n \n", ""), ("a\r\nb", "b")],
)
def test_last_line(text: str, key: str) -> None:
    assert last_line(text) == key


@pytest.mark.parametrize("name", ["normalised", "last-line"])
def test_a_key_is_its_own_key(name: str) -> None:
    for text in ("**Yes**, it is ...", "a\nB.", "(5)"):
        key = ANSWER_KEYS[name](text)
        assert ANSWER_KEYS[name](key) == key


def test_a_text_without_a_number_never_meets_a_number() -> None:
    """Its key has no digit, a number's key has one."""
    assert not any(letter.isdigit() for letter in final_number("forty-two"))
