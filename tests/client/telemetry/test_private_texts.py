"""No error and no log holds a text of the caller's, at the most verbose level, whatever fails."""

import logging
import traceback
from dataclasses import replace

import numpy as np
import pytest

from clickbert import ClickBertError, InvalidInputError
from tests.client.fake_model import FakeStatusError
from tests.client.fakes import calls

CANARY = "zqcanary"


def shown(error: BaseException) -> str:
    """What a log of the error would show, and what the errors behind it hold."""
    parts = traceback.format_exception(error)
    while error is not None:
        parts += [repr(error.args), repr(vars(error))]
        error = error.__cause__ or error.__context__
    return "".join(line for line in "".join(parts).splitlines() if "CANARY" not in line)


@pytest.mark.parametrize(
    "arguments, options",
    [
        ((CANARY, CANARY), {}),
        ((CANARY, [CANARY, 7]), {}),
        ((CANARY, [CANARY, f"{CANARY} \ud800"]), {}),
        ((f"{CANARY} \ud800", [CANARY]), {}),
        ((CANARY, [CANARY], CANARY), {}),
        (([CANARY], CANARY), {}),
        ((CANARY, [CANARY]), {"long_documents": CANARY}),
        ((CANARY, [CANARY]), {"timeout": CANARY}),
        ((CANARY, [CANARY] * 1001), {}),
        ((CANARY, {CANARY: CANARY}), {}),
    ],
)
def test_a_wrong_argument_is_not_repeated(server, blocking, arguments, options):
    with calls(server, blocking) as call, pytest.raises(InvalidInputError) as caught:
        call("rank", *arguments, **options)
    assert CANARY not in shown(caught.value)


@pytest.mark.parametrize("pairs", [[CANARY], [(CANARY,)], [(CANARY, 7)], [(CANARY, f"{CANARY}\ud800")], CANARY])
def test_nor_is_a_wrong_pair(server, blocking, pairs):
    with calls(server, blocking) as call, pytest.raises(InvalidInputError) as caught:
        call("score_pairs", pairs)
    assert CANARY not in shown(caught.value)


def nan(answer):
    spoiled = {"logits": np.full_like(answer.outputs["logits"], np.nan)} if "logits" in answer.outputs else {}
    return replace(answer, outputs={**answer.outputs, **spoiled})


STATUSES = ["INTERNAL", "INVALID_ARGUMENT", "UNAVAILABLE", "DEADLINE_EXCEEDED", "NOT_FOUND", "UNIMPLEMENTED"]


@pytest.mark.parametrize("failure", [*STATUSES, nan])
@pytest.mark.parametrize("fallback", [False, True])
def test_whatever_the_server_does_no_text_is_in_an_error_or_a_log(server, url, blocking, caplog, failure, fallback):
    def fail(request):
        if request.model == "clickbert_onnx":
            raise FakeStatusError(failure, "no")

    if callable(failure):
        server.after_infer = failure
    else:
        server.before_infer = fail
    with caplog.at_level(logging.DEBUG), calls(url, blocking) as call:
        try:
            call("rank", CANARY, [CANARY, f"{CANARY} 2"], fallback=fallback)
            assert fallback
        except ClickBertError as exc:
            assert not fallback
            assert CANARY not in shown(exc)
    assert CANARY not in caplog.text
