"""Decoding settings that cannot be used are refused in one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from ragstone.errors import InputError
from ragstone.model.decoding import Decoding


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 0}, "num_beams is 0, but must be at least 1"),
        ({"max_length": 0}, "max_length is 0, but must be at least 2"),
        ({"max_length": 1}, "max_length is 1, but must be at least 2: it counts the start token"),
        ({"num_return_sequences": -1}, "num_return_sequences is -1, but must be at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0, but must be at least 1"),
        ({"min_length": 9, "max_length": 8}, "min_length 9 is above max_length 8"),
        ({"min_length": 9, "max_new_tokens": 7}, "min_length 9 is above the start token and max_new_tokens"),
        ({"temperature": 0.0}, "temperature is 0.0, but must be above 0"),
        ({"top_k": -1}, "top_k is -1, but must be at least 1"),
        ({"top_p": 0.0}, "top_p is 0.0, but must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p is 1.5, but must be above 0 and at most 1"),
    ],
)
def test_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Decoding(**settings)


def test_lengths_count_the_start_token() -> None:
    assert Decoding(min_length=8, max_new_tokens=7).generation_options()["max_length"] == 8
    assert Decoding(max_length=7).generation_options()["max_length"] == 7


def test_more_answers_than_beams_are_for_samples() -> None:
    Decoding(1, do_sample=True, num_return_sequences=5).refuse_more_answers_than_beams()
    Decoding(5, num_return_sequences=5).refuse_more_answers_than_beams()
    for do_sample in (False, True):
        with pytest.raises(InputError, match="num_return_sequences 5 is above num_beams 2"):
            Decoding(2, do_sample=do_sample, num_return_sequences=5).refuse_more_answers_than_beams()
