"""What is masked, what is left alone, and that no text takes long."""

# ruff: noqa: RUF001 (full-width forms are meant)

import asyncio
import pickle
import re
import time

import pytest

from clickbert import AsyncRanker, InvalidInputError, Ranker
from clickbert.masking import Masking
from tests.client.fakes import AsyncFakeTransport, FakeTransport

EMAILS = [
    "mia@example.com",
    "Mia.Mustermann+shop@mail.example.co.uk",
    "o'hara_1@xn--bcher-kva.example",
    "rené@exämple.fr",
    "rene\u0301@example.fr",  # the accent is a character of its own
    "иван@пример.рф",
    "用户@例子.广告",
    "ｍｉａ＠ｅｘａｍｐｌｅ．ｃｏｍ",
]
NO_EMAILS = ["pieces@2.50", "@mia", "mia@", "meet @ 5.30 pm", "user@host", "a.b.c", "@", "5 @ 3.20 EUR"]
PHONES = [
    # With a country code.
    *(
        "+49 30 1234567",
        "+49 (0)30 1234567",
        "+4915112345678",
        "0049 30 1234567",
        "+1-212-555-0123",
        "tel:+33-1-23456789",
    ),
    *("+44 20 7946 0958", "+86 138 1234 5678", "+91 98765 43210", "+7 (912) 345-67-89", "+49\u00a030\u20111234567"),
    # With a trunk 0, or the area code in brackets.
    *(
        "030 1234567",
        "030/1234567",
        "(030) 123 45 67",
        "01 23 45 67 89",
        "020 7946 0958",
        "0151-12345678",
        "03-1234-5678",
    ),
    *("0 532 123 45 67", "(212) 555-0123", "8 (912) 345-67-89", "(11) 91234-5678"),
    # The Americas, China, India.
    *("212-555-0123", "212.555.0123", "1-800-555-0199", "13812345678", "138 1234 5678", "98765 43210"),
    # Digits of other scripts: full-width, Arabic, Devanagari.
    *("+４９ ３０ １２３４５６７", "+٩٦٦ ٥٠ ١٢٣ ٤٥٦٧", "०२० १२३४ ५६७८"),
]
NO_PHONES = [
    *("2024/05/06 - 2024/05/12", "10/01/24 - 12/01/24", "https://news.site/2024/05/06/123456"),
    *("49.90 EUR", "1.299,00 EUR", "$1,234,567.89", "1 234 567 890", "12.000.000", "-50 %", "+100%", "+12,000,000"),
    *("2024", "1999-2000", "2019 2020 2021", "(2019) 1080 50", "FIFA 2022/2023"),
    *("2024-01-15", "15.01.2024", "05.11.2024 18:30", "01.02.2024-05.02.2024", "05/2024 - 06/2024", "08.00 - 18.00"),
    *("20000 mm", "1920x1080", "120 x 60 x 75 cm", "36 38 40 42 44", "0.123456789", "3.0151234567", "5-10-15"),
    *(
        "4006381333931",
        "978-3-16-148410-0",
        "B08N5WRWNW",
        "SKU0151234567",
        "0151234567a",
        "12345678",
        "192.168.100.200",
    ),
    *("iPhone 15 128 GB", "Article 4711", "COVID-19", "9/11", "24/7", "WWII 1939-1945", "1 2 3 4 5 6 7 8"),
]
CARDS = [
    *("4111 1111 1111 1111", "4111-1111-1111-1111", "4111111111111111", "5555 5555 5555 4444", "3782 822463 10005"),
    *(
        "4222222222222",
        "6304 0000 0000 0000 000",
        "4111\u00a01111\u20111111 - 1111",
        "４１１１ １１１１ １１１１ １１１１",
    ),
]
NO_CARDS = ["4111 1111 1111 1112", "4111 1111 1111", "41111111111111111111", "0000 0000 0000 0000", "A4111111111111111"]
AROUND = ["{}", "write: {}, please", "({}).", "<{}>", "a\n{}\tb", "请联系{}谢谢", "“{}”"]


def around(found, word):
    return [(text.format(each), text.format(word)) for each in found for text in AROUND]


@pytest.mark.parametrize(("text", "masked"), around(EMAILS[:5], "email"))
def test_email_addresses_are_masked_wherever_they_stand(text, masked):
    assert Masking()(text) == masked


@pytest.mark.parametrize("address", EMAILS)
def test_addresses_of_every_script_are_masked(address):
    assert Masking()(f"to: {address} !") == "to: email !"


@pytest.mark.parametrize(("text", "masked"), around(PHONES, "phone"))
def test_phone_numbers_are_masked_wherever_they_stand(text, masked):
    assert Masking()(text) == masked.replace("phone", "tel:phone" if "tel:" in text else "phone")


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("0301234567,0307654321", "phone,phone"),
        ("42,0301234567", "42,phone"),
        ("2024-11-05,0301234567", "2024-11-05,phone"),
        ("212-555-0123,212-555-0199", "phone,phone"),
        ("3,0123456789 and 1,012,345,678", "3,0123456789 and 1,012,345,678"),
    ],
)
def test_phone_numbers_are_masked_in_lists_with_commas(text, masked):
    assert Masking()(text) == masked


@pytest.mark.parametrize(("text", "masked"), around(CARDS, "card"))
def test_card_numbers_are_masked_wherever_they_stand(text, masked):
    assert Masking()(text) == masked


@pytest.mark.parametrize("text", [*NO_EMAILS, *NO_PHONES, *NO_CARDS, "", " ", "a teapot for four cups"])
def test_what_names_nobody_is_left_alone(text):
    assert Masking()(text) == text
    assert Masking()(f"about {text} and more") == f"about {text} and more"


def test_a_card_among_other_numbers_is_masked_alone():
    assert Masking()("2 4111 1111 1111 1111 12/27") == "2 card 12/27"
    assert Masking()("4111 1111 1111 1111 2x") == "card 2x"
    assert Masking()("1234 5678 4111 1111 1111 1111 4111-1111-1111-1111") == "1234 5678 card card"


def test_all_of_a_text_is_masked():
    text = "mia@example.com 030 1234567, leo@example.org; +49 30 7654321 / 4111 1111 1111 1111"
    assert Masking()(text) == "email phone, email; phone / card"


def test_each_kind_can_be_left_out():
    text = "mia@example.com 030 1234567 / 4111 1111 1111 1111"
    assert Masking(emails=False)(text) == "mia@example.com phone / card"
    assert Masking(phones=False)(text) == "email 030 1234567 / card"
    assert Masking(cards=False)(text) == "email phone / 4111 1111 1111 1111"
    assert Masking(emails=False, phones=False, cards=False)(text) == text


def test_patterns_are_masked_before_all_else():
    masking = Masking(patterns=[r"DE\d{9}", re.compile("secret", re.IGNORECASE)])
    assert masking("DE123456789 Secret mia@example.com") == "masked masked email"
    assert Masking(patterns=["mia@"])("mia@example.com") == "maskedexample.com"


def test_a_pattern_that_matches_nothing_masks_nothing():
    assert Masking(patterns=["x*", r"\b"])("a xx b") == "a masked b"


@pytest.mark.parametrize("pattern", ["(", "[a", "*", "(?P<a>b)(?P<a>c)", "a{99999999999999999999}"])
def test_a_pattern_that_is_none_is_refused_by_its_text(pattern):
    with pytest.raises(
        InvalidInputError, match=re.escape(f"patterns[1] is {pattern!r}, which is no regular expression")
    ):
        Masking(patterns=["a", pattern])


@pytest.mark.parametrize("pattern", [b"a", re.compile(b"a"), 3, None])
def test_a_pattern_of_another_type_is_refused(pattern):
    with pytest.raises(InvalidInputError, match=r"patterns\[0\] is of type .*, expected a regular expression for text"):
        Masking(patterns=[pattern])


@pytest.mark.parametrize("patterns", ["abc", b"abc", re.compile("a"), None, 3, {"a"}])
def test_patterns_must_be_a_list(patterns):
    with pytest.raises(InvalidInputError, match="patterns is of type"):
        Masking(patterns=patterns)


def test_it_is_frozen_hashable_and_goes_to_other_processes():
    masking = Masking(cards=False, patterns=["a", re.compile("b", re.IGNORECASE)])
    with pytest.raises(AttributeError):
        masking.emails = False
    copy = pickle.loads(pickle.dumps(masking))
    assert copy == masking
    assert hash(copy) == hash(masking)
    assert copy("a B") == "masked masked"


@pytest.mark.parametrize("method", ["rank", "score_pairs"])
def test_the_model_sees_masked_texts_and_the_caller_his_own(server, blocking, method):
    query, document, masked = "mia@example.com", "call 030 1234567", ("email", "call phone")

    def sent(mask, query, document):
        server.requests.clear()
        arguments = (query, [document]) if method == "rank" else ([(query, document)],)
        transport = FakeTransport(server) if blocking else AsyncFakeTransport(server)
        ranker = (Ranker if blocking else AsyncRanker)("localhost:8001", transport=transport, mask=mask)
        called = getattr(ranker, method)(*arguments)
        result = called if blocking else asyncio.run(as_coroutine(called))
        return result, [request.inputs for request in server.requests if request.inputs]

    result, requests = sent(Masking(), query, document)
    expected, expected_requests = sent(None, *masked)
    assert [{name: array.tolist() for name, array in each.items()} for each in requests] == [
        {name: array.tolist() for name, array in each.items()} for each in expected_requests
    ]
    if method == "rank":
        assert [(item.text, item.score) for item in result] == [(document, expected[0].score)]
    else:
        assert result == expected


async def as_coroutine(awaitable):
    return await awaitable


# What makes a search quadratic: long runs of what a number or an address may begin with, and never ends.
HOSTILE = [
    *("a", "a@", "a.", "a@a.", "a@1.", "é", "e\u0301@", "中", "中@", "@", "-", "a-@"),
    *("1", "1 ", "1-", "+", "+1", "+ ", "+(((", "0", "01 ", "00", "(", "(1", "(1)", "0)))1", "1-1-1", "19.12.2024 "),
    *("4444 ", "4444", "4444 44 ", "٣", " ", "\u200b", "\n", "\0", "😀", "\ud800"),
]


@pytest.mark.parametrize("unit", HOSTILE, ids=ascii)
def test_a_hostile_text_takes_time_in_proportion_to_its_length(unit):
    """A quadratic search takes 64 times as long for 8 times the length. (CPU time: other processes do not count.)"""
    masking = Masking()

    def seconds(length: int) -> float:
        text = (unit * (length // len(unit) + 1))[:length]
        began = time.process_time()
        masking(text)
        return time.process_time() - began

    short = min(seconds(5_000) for _ in range(3))
    assert seconds(40_000) < 24 * short + 0.1
