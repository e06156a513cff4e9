"""Masking on texts that nobody thought of: addresses and numbers of any form, amid anything."""

import string

import pytest

from clickbert.masking import Masking

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed: properties are not checked")
st = hypothesis.strategies

# Lone surrogates, too: the ranker refuses them after masking.
ANY = st.text(max_size=60)
NEAR_MISSES = st.text(alphabet="01 49+-./()@aé中٣\u200b\u00a0", max_size=60)
WORD = st.text(alphabet=string.ascii_letters + string.digits, min_size=1, max_size=12)
ADDRESSES = st.builds("{}.{}@{}.example".format, WORD, WORD, WORD)
SPLITS = st.sampled_from([" ", "-", ".", "\u00a0", "\u2011", " - ", "/"])


@st.composite
def with_country_code(draw):
    digits = draw(st.text(alphabet=string.digits, min_size=8, max_size=14))
    cuts = sorted(draw(st.sets(st.integers(1, len(digits) - 1), max_size=4)))
    parts = [digits[first:last] for first, last in zip([0, *cuts], [*cuts, len(digits)], strict=True)]
    return "+1" + draw(SPLITS).join(parts)


@st.composite
def card_numbers(draw):
    digits = draw(st.text(alphabet=string.digits, min_size=12, max_size=18).filter(lambda text: text.strip("0")))
    total = sum(int(digit) for digit in digits[-2::-2]) + sum(sum(divmod(2 * int(d), 10)) for d in digits[::-2])
    digits += str(-total % 10)
    split = draw(st.sampled_from(["", " ", "-"]))
    return split.join(digits[place : place + 4] for place in range(0, len(digits), 4))


@hypothesis.given(ANY | NEAR_MISSES)
def test_any_text_can_be_masked_and_masking_it_again_changes_nothing(text):
    once = Masking()(text)
    assert Masking()(once) == once


@hypothesis.given(ANY, ADDRESSES, ANY)
def test_an_address_is_gone_whatever_stands_around_it(before, address, after):
    assert address not in Masking()(f"{before} {address} {after}")


@hypothesis.given(ANY, with_country_code(), ANY)
def test_a_number_with_a_country_code_is_gone_whatever_stands_around_it(before, number, after):
    assert number not in Masking()(f"{before} {number} {after}")


@hypothesis.given(ANY, card_numbers(), ANY)
def test_a_card_number_is_gone_whatever_stands_around_it(before, number, after):
    assert number not in Masking()(f"{before} {number} {after}")


@hypothesis.given(st.text(alphabet=string.ascii_letters + " ,;!?äß中", max_size=200))
def test_words_are_left_alone(text):
    assert Masking()(text) == text
