"""What can never succeed must be refused before it waits, with a sentence that says what to change; and a request whose
options are merely unusual must not be. Both sides of every border are tried.
"""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from embedpool.protocol import Embed, ModelCard
from embedpool.router.admission import Admission, impossible
from embedpool.shm.layout import DTYPES, Dtype, row_bytes

PROMPTS = ("query", "document", "passage")
CARD = ModelCard("model", 4, 512, "fingerprint", PROMPTS, titled=("document", "passage"))
CODES = replace(CARD, name="codes", dtypes=("uint8",))
ASK = Embed(7, ("one", "two"))
TITLED: dict[str, Any] = {"prompt_name": "document", "titles": ("a", "b")}
SEGMENT = 4096


def _invalid(rules: Admission, model: ModelCard = CARD, segment: int = SEGMENT, **fields: Any) -> tuple[str, str]:
    """(code, message) of the refusal, "" twice for none."""
    refused = rules.invalid(model, replace(ASK, **fields), segment)
    if refused is None:
        return "", ""
    assert (refused.id, refused.retryable, refused.retry_after_ms) == (7, False, None), "waiting does not help"
    return refused.code, refused.message


# ── contradictions ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("model", "fields", "reason"),
    [
        (CODES, {}, "codes gives uint8 of an unknown range: ask for dtype uint8, or start the pool with --output-range"),
        (CODES, {"dtype": "int8"}, "codes gives uint8 of an unknown range"),
        (CARD, {"prompt": "Q: ", "prompt_name": "query"}, "prompt and prompt_name are both given: one of them"),
        (CARD, {"prompt": "", "prompt_name": "query"}, "prompt and prompt_name are both given"),
        (CARD, TITLED | {"prompt": "Q: "}, "prompt and prompt_name are both given"),
        (CARD, TITLED | {"titles": ("a",)}, "1 titles for 2 texts"),
        (CARD, TITLED | {"titles": ("a", "b", "c")}, "3 titles for 2 texts"),
        (CARD, TITLED | {"texts": ()}, "2 titles for 0 texts"),
        (CARD, TITLED | {"prompt_name": "query"}, "titles go with prompt_name document, passage"),
        (CARD, TITLED | {"prompt_name": None}, "titles go with prompt_name document, passage"),
        (CARD, TITLED | {"prompt_name": None, "prompt": "Q: "}, "titles go with prompt_name document, passage"),
        (replace(CARD, titled=()), TITLED, "no prompt of model takes a title"),
    ],
    ids=str,
)
def test_options_that_contradict_each_other_are_refused_with_what_to_say_instead(
    model: ModelCard, fields: dict[str, Any], reason: str
) -> None:
    assert impossible(model, replace(ASK, **fields)).startswith(reason)
    code, message = _invalid(Admission(), model, **fields)
    assert (code, message[: len(reason)]) == ("bad_request", reason)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": ""},
        {"prompt": "Q: "},
        {"prompt_name": "query"},
        TITLED,
        TITLED | {"prompt_name": "passage"},
        TITLED | {"titles": ("", "")},
        {"prompt_name": "document"},  # the model's own words for a document without a title
        {"texts": (), "prompt_name": "document"},
        *({"dtype": dtype} for dtype in DTYPES),
        *({"truncate": side} for side in (True, False, "left", "right")),
    ],
    ids=str,
)
def test_options_that_go_together_are_taken(fields: dict[str, Any]) -> None:
    assert impossible(CARD, replace(ASK, **fields)) == ""
    assert _invalid(Admission(), **fields) == ("", "")


def test_codes_of_an_unknown_range_can_be_had_as_they_are() -> None:
    assert _invalid(Admission(), CODES, dtype="uint8") == ("", "")


def test_a_prompt_that_does_not_exist_is_named_before_its_titles_are_looked_at() -> None:
    assert _invalid(Admission(), **TITLED | {"prompt_name": "doc"}) == (
        "unknown_prompt",
        "no prompt 'doc': model has query, document, passage",
    )


# ── sizes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fields", "characters"),
    [
        ({"prompt": "x" * 20}, 20),
        (TITLED | {"titles": ("x" * 3, "x" * 20)}, 20),
        (TITLED | {"titles": ("x" * 20, "")}, 20),
    ],
)
def test_what_stands_before_a_text_may_be_as_long_as_a_text_and_no_longer(fields: dict[str, Any], characters: int) -> None:
    assert _invalid(Admission(max_text_chars=characters), **fields) == ("", "")
    code, message = _invalid(Admission(max_text_chars=characters - 1), **fields)
    assert code == "too_large"
    assert message == f"prompt and title have {characters} characters, at most {characters - 1}"


def test_a_text_too_long_is_named_and_a_title_is_no_part_of_it() -> None:
    rules = Admission(max_text_chars=5)
    assert _invalid(rules, **TITLED | {"texts": ("12345", "12345"), "titles": ("12345", "1")}) == ("", "")
    refused = rules.invalid(CARD, replace(ASK, texts=("1", "123456", "123456")), SEGMENT)
    assert refused is not None
    assert (refused.code, refused.row) == ("too_large", 1)
    assert refused.message == "text 1 has 6 characters, at most 5"
    refused = rules.invalid(CARD, replace(ASK, texts=("123456", "1234567", "1")), SEGMENT)
    assert refused is not None
    assert (refused.row, refused.message) == (1, "text 1 has 7 characters, at most 5")
    refused = rules.invalid(CARD, replace(ASK, texts=("123456", "1")), SEGMENT)
    assert refused is not None
    assert refused.row == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [0, 1, 3])
def test_a_room_is_measured_in_rows_of_its_type(dtype: Dtype, dim: int) -> None:
    needed = 2 * row_bytes(dim or 4, dtype)
    inside, outside = SEGMENT - needed, SEGMENT - needed + 4
    assert _invalid(Admission(), dtype=dtype, dim=dim, offset=inside) == ("", "")
    assert _invalid(Admission(), dtype=dtype, dim=dim, offset=outside) == (
        "bad_request",
        f"{needed} bytes at offset {outside} do not lie inside the session's segment of {SEGMENT} bytes",
    )
    assert _invalid(Admission(max_inline_bytes=needed), dtype=dtype, dim=dim) == ("", "")
    assert _invalid(Admission(max_inline_bytes=needed - 1), dtype=dtype, dim=dim) == (
        "too_large",
        f"{needed} bytes of vectors inline, at most {needed - 1}",
    )


def test_a_session_without_a_segment_has_room_for_nothing_but_inline() -> None:
    assert _invalid(Admission(), segment=0, dtype="binary", offset=0)[0] == "bad_request"
    assert _invalid(Admission(), segment=0, dtype="binary") == ("", "")
