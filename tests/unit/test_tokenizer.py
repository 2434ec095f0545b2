"""A text that is tokenised a little differently gives a vector that is a little wrong. So small tokenizers are built here as
exporters leave them, with all that a server must not follow, and the ids are compared one by one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from embedpool.errors import ModelError
from embedpool.models import tokenizer
from embedpool.models.encoding import Cut
from embedpool.models.tokenizer import BERT_UNCASED, Tokenizer, vocabulary

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<eos>"]
CLS, SEP, EOS = 2, 3, 4
A, B, C, D, E, F = range(5, 11)


def _made(special: Sequence[str] = SPECIAL, between: str = "[CLS] $A [SEP]") -> Any:
    """A token is a letter. `between` "" puts no special tokens around a text."""
    words = {piece: i for i, piece in enumerate([*special, *LETTERS])}
    made = tokenizers.Tokenizer(models.WordLevel(words, unk_token=special[1]))
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("", "isolated")])
    if between:
        ends = [(token, words[token]) for token in between.split() if token != "$A"]
        made.post_processor = processors.TemplateProcessing(single=between, special_tokens=ends)
    return made


def _saved(path: Path, made: Any = None) -> str:
    path.mkdir(parents=True, exist_ok=True)
    file = path / "tokenizer.json"
    file.write_text((made or _made()).to_str())
    return str(file)


# ── the bundled vocabulary ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", [101, 102]),
        ("hello world", [101, 7592, 2088, 102]),
        ("HELLO  Wörld!", [101, 7592, 2088, 999, 102]),
        ("Deep Learning?", [101, 2784, 4083, 1029, 102]),
        ("embeddings", [101, 7861, 8270, 4667, 2015, 102]),
        ("机器", [101, 100, 100, 102]),
        ("x" * 101, [101, 100, 102]),
    ],
)
def test_the_bundled_vocabulary_is_berts(text: str, ids: list[int]) -> None:
    """As transformers' BertTokenizer("bert-base-uncased") gives them."""
    assert Tokenizer(BERT_UNCASED, 256).tokens([text], "") == [ids]


def test_the_bundled_vocabulary_is_whole_and_pads_with_its_own_token() -> None:
    lines = vocabulary().decode().splitlines()
    assert (len(lines), len(set(lines)), lines[0], lines[30521]) == (30522, 30522, "[PAD]", "##～")
    assert Tokenizer(BERT_UNCASED, 256).pad_id() == 0


def test_a_bundled_vocabulary_that_was_changed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gzip.decompress", lambda _: b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    with pytest.raises(ModelError, match="damaged"):
        Tokenizer(BERT_UNCASED, 256)


# ── a tokenizer.json ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_padding_and_truncation_that_an_export_left_behind_are_not_followed(tmp_path: Path) -> None:
    careless = _made()
    careless.enable_padding(length=9, pad_id=0)
    careless.enable_truncation(3, direction="left")
    source = _saved(tmp_path, careless)
    assert json.loads(Path(source).read_text())["truncation"] is not None, "the export was meant to be careless"
    made = Tokenizer(source, 5)
    expected: dict[Cut, list[int]] = {
        "": [CLS, A, B, C, D, E, F, SEP],
        "right": [CLS, A, B, C, SEP],
        "left": [CLS, D, E, F, SEP],
    }
    for cut, ids in expected.items():
        assert made.tokens(["abcdef", "ab"], cut) == [ids, [CLS, A, B, SEP]]


def test_texts_are_cut_on_either_side_and_keep_their_special_tokens_however_cuts_follow_each_other(tmp_path: Path) -> None:
    made = Tokenizer(_saved(tmp_path), 4)
    expected: dict[Cut, list[int]] = {
        "": [CLS, A, B, C, D, E, SEP],
        "right": [CLS, A, B, SEP],
        "left": [CLS, D, E, SEP],
    }
    order: list[Cut] = ["", "right", "left", "right", "", "left", "left", "", "right", "right", ""]
    for cut in order:
        assert made.tokens(["abcde", "e"], cut) == [expected[cut], [CLS, E, SEP]]


@pytest.mark.parametrize("cut", ["left", "right"])
@pytest.mark.parametrize("most", range(2, 12))
def test_no_text_is_longer_than_the_limit_and_none_is_cut_that_fits(tmp_path: Path, most: int, cut: Cut) -> None:
    made = Tokenizer(_saved(tmp_path), most)
    for n in range(12):
        (whole,), (kept,) = made.tokens([LETTERS[:n]], ""), made.tokens([LETTERS[:n]], cut)
        assert len(whole) == n + 2
        assert (len(kept), kept[0], kept[-1]) == (min(n + 2, most), CLS, SEP)
        inner = whole[1:-1]
        assert kept[1:-1] == (inner[: most - 2] if cut == "right" else inner[max(n - (most - 2), 0) :])


def test_texts_together_are_like_texts_alone(tmp_path: Path) -> None:
    made = Tokenizer(_saved(tmp_path), 6)
    texts = ["", "a", "abcdefgh", "?", " b ", "abcd"]
    for cut in ("", "left", "right"):
        assert made.tokens(texts, cut) == [made.tokens([text], cut)[0] for text in texts]
    assert made.tokens([], "right") == []
    assert made.tokens(("a", "?"), "") == [[CLS, A, SEP], [CLS, 1, SEP]]


def test_a_text_is_lowered_only_where_the_model_says_so(tmp_path: Path) -> None:
    source = _saved(tmp_path)
    assert Tokenizer(source, 9, lowercase=True).tokens(["AbC"], "right") == [[CLS, A, B, C, SEP]]
    assert Tokenizer(source, 9).tokens(["AbC"], "right") == [[CLS, 1, B, 1, SEP]]


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"version": "1.0", "model": {"type": "Unheard"}}', None])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "tokenizer.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ModelError) as caught:
        Tokenizer(str(file), 9)
    assert caught.value.message.startswith(f"{file} is not a tokenizer that can be read: ")


@pytest.mark.parametrize("large", [True, False])
def test_memory_that_a_large_file_took_to_be_parsed_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    given: list[bool] = []
    monkeypatch.setattr(tokenizer, "give_back", lambda: given.append(True))
    source = _saved(tmp_path)
    size = Path(source).stat().st_size
    monkeypatch.setattr(tokenizer, "_LARGE_BYTES", size - 1 if large else size)
    assert Tokenizer(source, 9).tokens(["a"], "") == [[CLS, A, SEP]]
    assert given == ([True] if large else [])


# ── padding ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("special", "named", "id"),
    [
        (SPECIAL, "", 0),
        (SPECIAL, "[PAD]", 0),
        (SPECIAL, "<eos>", 4),
        (["[PAD]", "<unk>", "<pad>"], "", 0),
        (["<s>", "<unk>", "<pad>"], "", 2),
        (["<s>", "<unk>", "<pad>", "[PAD]"], "", 3),  # the first of the usual names, not of the ids
        (["<s>", "<unk>", "<pad>", "[PAD]"], "<pad>", 2),
        (["<unk>", "<u>", "<|endoftext|>"], "", 2),
        (["<unk>", "<u>", "<|finetune_right_pad_id|>"], "", 2),
        (["<s>", "<unk>"], "", 0),  # none: any id will do, it is masked
        (["<s>", "<unk>"], "a", 2),
    ],
)
def test_padding_is_the_token_that_is_named_or_of_a_usual_name(tmp_path: Path, special: list[str], named: str, id: int) -> None:
    assert Tokenizer(_saved(tmp_path, _made(special, between="")), 9).pad_id(named) == id


@pytest.mark.parametrize("named", ["<pad>", "[pad]", "None"])
def test_a_padding_token_that_is_not_in_the_vocabulary_is_refused_not_replaced(tmp_path: Path, named: str) -> None:
    with pytest.raises(ModelError, match="not in its vocabulary") as caught:
        Tokenizer(_saved(tmp_path), 9).pad_id(named)
    assert repr(named) in caught.value.message


# ── a token at the end ───────────────────────────────────────────────────────────────────────────────────────────────


def _byte_level() -> Any:
    """As Qwen's: a post-processor that adds nothing."""
    made = _made(between="")
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    return made


@pytest.mark.parametrize("before", [lambda: _made(between=""), _byte_level], ids=["no post-processor", "ByteLevel"])
def test_a_token_is_appended_once_and_stays_when_a_text_is_cut(tmp_path: Path, before: Any) -> None:
    made = Tokenizer(_saved(tmp_path, before()), 4)
    assert made.tokens(["abcdef"], "") == [[A, B, C, D, E, F]]
    for _ in range(3):
        made.append("<eos>")
        assert made.tokens(["", "ab", "abcdef"], "") == [[EOS], [A, B, EOS], [A, B, C, D, E, F, EOS]]
        assert made.tokens(["abc", "abcdef"], "right") == [[A, B, C, EOS], [A, B, C, EOS]]
        assert made.tokens(["abc", "abcdef"], "left") == [[A, B, C, EOS], [D, E, F, EOS]]


@pytest.mark.parametrize("between", ["$A <eos>", "[CLS] $A <eos>"])
def test_a_token_that_ends_every_text_already_is_not_appended(tmp_path: Path, between: str) -> None:
    made = Tokenizer(_saved(tmp_path, _made(between=between)), 4)
    expected = made.tokens(["ab", "abcdef"], "right")
    assert all(ids.count(EOS) == 1 for ids in expected)
    made.append("<eos>")
    assert made.tokens(["ab", "abcdef"], "right") == expected


def test_a_text_that_spells_the_token_does_not_count_as_ending_with_it(tmp_path: Path) -> None:
    plain = _made(between="")
    plain.add_special_tokens(["<eos>"])
    made = Tokenizer(_saved(tmp_path, plain), 9)
    made.append("<eos>")
    assert made.tokens(["a<eos>"], "") == [[A, EOS, EOS]]


@pytest.mark.parametrize("before", [lambda: _made(between=""), _byte_level], ids=["no post-processor", "ByteLevel"])
def test_an_appended_token_is_saved_and_not_appended_again(tmp_path: Path, before: Any) -> None:
    made = Tokenizer(_saved(tmp_path, before()), 4)
    made.append("<eos>")
    made.tokens(["abcdef"], "left")  # a cut that is in force when it is saved
    made.save(tmp_path / "saved.json")
    again = Tokenizer(str(tmp_path / "saved.json"), 5)
    for _ in range(2):
        assert again.tokens(["abcdef"], "") == [[A, B, C, D, E, F, EOS]]
        assert again.tokens(["abcdef"], "right") == [[A, B, C, D, EOS]]
        again.append("<eos>")


def test_a_token_is_appended_behind_those_that_texts_end_with_already(tmp_path: Path) -> None:
    plain = _made(between="")
    plain.post_processor = processors.BertProcessing(("[SEP]", SEP), ("[CLS]", CLS))
    made = Tokenizer(_saved(tmp_path, plain), 5)
    for _ in range(2):
        made.append("<eos>")
        assert made.tokens(["abcdef"], "") == [[CLS, A, B, C, D, E, F, SEP, EOS]]
        assert made.tokens(["abcdef", "a"], "left") == [[CLS, E, F, SEP, EOS], [CLS, A, SEP, EOS]]


def test_a_token_that_the_vocabulary_lacks_is_not_appended(tmp_path: Path) -> None:
    made = Tokenizer(_saved(tmp_path), 9)
    with pytest.raises(ModelError, match=r"no token <\|endoftext\|>"):
        made.append("<|endoftext|>")
    assert made.tokens(["a"], "") == [[CLS, A, SEP]]


@pytest.mark.parametrize("source", ["bundled", "a file"])
def test_a_tokenizer_that_was_saved_gives_the_same_tokens(tmp_path: Path, source: str) -> None:
    texts = ["", "abc", "hello wörld", "x" * 300]
    made = Tokenizer(BERT_UNCASED if source == "bundled" else _saved(tmp_path), 16)
    made.save(tmp_path / "saved.json")
    again = Tokenizer(str(tmp_path / "saved.json"), 16)
    for cut in ("", "left", "right"):
        assert again.tokens(texts, cut) == made.tokens(texts, cut)
    assert again.pad_id() == made.pad_id()


@pytest.mark.parametrize(
    "pieces", [["ab", "abc"], ["a b"], ["#version x"], []], ids=["plain", "with a space", "like a header", "none"]
)
def test_merges_are_saved_in_the_form_that_is_read_faster_where_it_means_the_same(tmp_path: Path, pieces: list[str]) -> None:
    merges = {"ab": ("a", "b"), "abc": ("ab", "c"), "a b": ("a ", "b"), "#version x": ("#version", " x")}
    letters = dict.fromkeys([*LETTERS, "a ", "#version", " x", *pieces])
    words = {piece: i for i, piece in enumerate(letters)}
    made = tokenizers.Tokenizer(models.BPE(words, [merges[piece] for piece in pieces]))
    source = _saved(tmp_path / "source", made)
    Tokenizer(source, 99).save(tmp_path / "saved.json")
    saved = json.loads((tmp_path / "saved.json").read_text())["model"]["merges"]
    assert [type(merge) for merge in saved] == ([str] * 2 if pieces == ["ab", "abc"] else [list] * len(pieces))
    again = Tokenizer(str(tmp_path / "saved.json"), 99)
    for text in ("abcab", "a ba b", "#version x"):
        assert again.tokens([text], "") == Tokenizer(source, 99).tokens([text], "")
