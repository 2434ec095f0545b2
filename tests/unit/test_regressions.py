"""What an adversarial reading of the model layer and of the options found: each was wrong once, and none of it was noticed.

Options that a client takes can be sent; settings that are given are followed or refused; what stands before a text
counts as work.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers, processors

from embedpool import errors
from embedpool import protocol as wire
from embedpool.client.core import Options
from embedpool.client.documents import options_of
from embedpool.models import directory, resolve
from embedpool.models.cache import Cache
from embedpool.models.resolve import Wanted
from embedpool.models.tokenizer import Tokenizer
from tests.unit.test_cache import MACHINE, NOTE, _make
from tests.unit.test_client_core import asked, opened, said, welcome
from tests.unit.transcript import ask, core, play


def _tokenizer(tmp_path: Path, single: str) -> Tokenizer:
    words = {p: i for i, p in enumerate(["[UNK]", "[CLS]", "[SEP]", "<eos>", "a", "b"])}
    made = Library(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    (tmp_path / "t.json").write_text(made.to_str())
    return Tokenizer(str(tmp_path / "t.json"), 9)


def test_append_behind_a_template_of_two_pieces_is_not_lost(tmp_path: Path) -> None:
    made = _tokenizer(tmp_path, "$A [SEP]")
    made.append("<eos>")
    assert made.tokens(["a b"], "") == [[4, 5, 2, 3]]


def test_append_behind_a_template_of_three_pieces_does_not_panic(tmp_path: Path) -> None:
    made = _tokenizer(tmp_path, "[CLS] $A [SEP]")
    made.append("<eos>")
    try:
        assert made.tokens(["a b"], "") == [[1, 4, 5, 2, 3]]
    except BaseException as error:  # a panic of the library is no Exception
        pytest.fail(f"{type(error).__name__}: {error}")


def _weights_only(tmp_path: Path) -> str:
    for name, text in (
        ("tokenizer.json", "{}"),
        ("model.safetensors", ""),
        ("tokenizer_config.json", '{"model_max_length": 64}'),
    ):
        (tmp_path / name).write_text(text)
    return str(tmp_path)


@pytest.mark.parametrize("precision", ["auto", "fp32", "q8", "q4"])
def test_an_onnx_file_that_is_not_there_is_not_silently_replaced_by_the_weights(tmp_path: Path, precision: str) -> None:
    with pytest.raises(errors.ModelError, match=r"typo\.onnx"):
        resolve.resolve(Wanted(_weights_only(tmp_path), precision=precision, onnx_file="onnx/typo.onnx"))


@pytest.mark.parametrize("wanted", [{"pooling": "cls"}, {"output_range": "nonsense"}])
def test_settings_are_not_ignored_for_the_package(wanted: Any) -> None:
    source = None
    try:
        source = resolve.resolve(Wanted("minilm", **wanted))
    except errors.ModelError:
        return
    assert source.pooling == wanted.get("pooling", "mean") and "output_range" not in wanted


@pytest.mark.parametrize("options", [{"prompt": "\ud800"}, {"prompt_name": "\ud800"}], ids=str)
def test_a_prompt_with_a_lone_surrogate_is_a_bad_request(options: Any) -> None:
    made, _ = opened()
    with pytest.raises(errors.BadRequest):
        asked(made, ["a"], options=Options(**options))


def test_one_callers_bad_prompt_between_two_sessions_does_not_end_the_others() -> None:
    made, _ = opened()
    said(made, wire.Who(8))
    with pytest.raises(errors.BadRequest):
        asked(made, ["a"], options=Options(prompt="\ud800"))
    other, _ = asked(made, ["b"])
    again = said(made, welcome())
    assert [m.id for m in again] == [other.id]


@pytest.mark.parametrize(
    "keywords", [{"dtype": np.dtype("float16")}, {"truncate": np.True_}, {"truncate": 1}, {"prompt": np.str_("Q: ")}], ids=str
)
def test_a_keyword_that_is_taken_can_be_sent(keywords: Any) -> None:
    made, _ = opened()
    try:
        options = options_of(keywords)
    except errors.BadRequest:
        return
    asked(made, ["a"], options=options)


@pytest.mark.parametrize("titles", [np.array(["a", "b"]), 5], ids=str)
def test_titles_are_taken_as_texts_are_or_refused_as_bad_request(titles: Any) -> None:
    try:
        assert options_of({"titles": titles}).titles == ("a", "b")
    except errors.BadRequest:
        assert isinstance(titles, int)


@pytest.mark.parametrize("titles", [("a", "\ud800"), ("a", 5)], ids=str)
def test_a_bad_title_is_called_a_title(titles: Any) -> None:
    made, _ = opened()
    with pytest.raises(errors.BadRequest) as caught:
        asked(made, ["x", "y"], options=Options(prompt_name="query", titles=titles))
    assert "title" in caught.value.message, caught.value.message


def test_titles_as_one_string_are_called_titles() -> None:
    with pytest.raises(errors.BadRequest, match="titles"):
        options_of({"titles": "one string"})


def test_prompts_and_titles_count_as_work() -> None:
    plain, long = core(), core()
    play(plain, ask(texts=["x"]), 0.0)
    play(long, ask(texts=["x"], prompt="y" * 2000), 0.0)
    assert long.queue.units[True] > plain.queue.units[True] + 1900
    titled = core()
    play(titled, ask(texts=["x"], prompt_name="document", titles=("y" * 2000,)), 0.0)
    assert titled.queue.units[True] > plain.queue.units[True] + 1900


def test_a_padding_token_without_content_is_none(tmp_path: Path) -> None:
    _weights_only(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": None}, "model_max_length": 9}))
    assert directory.read(tmp_path, ("model.onnx",)).pad == ""


@pytest.mark.parametrize("field", [{"machine": None}, {"sources": None}, {"spec": None}], ids=str)
def test_a_note_whose_fields_are_of_another_kind_is_damaged(tmp_path: Path, field: Any) -> None:
    path = _make(Cache(tmp_path / "c")).path
    (path / NOTE).write_text(json.dumps(json.loads((path / NOTE).read_text()) | field))
    (found,) = Cache(tmp_path / "c").all()
    found.stale(MACHINE)
    if found.is_whole():
        assert found.spec
