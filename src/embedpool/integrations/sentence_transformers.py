"""A pool behind the interface of sentence-transformers' `SentenceTransformer`, without that library and without PyTorch.

It is for programs that were written for that class: the import line changes, `encode` and its kin keep their arguments, shapes
and types (bench/like_sentence_transformers.py compares both over a table of arguments). What differs:

* int8 and uint8 need `ranges`, float[2, dim] with the least and greatest value per dimension of a sample, at construction.
  Without them sentence-transformers takes the ranges from the texts of the call, so that a text has other codes in every call,
  and codes of two calls cannot be compared. That is refused here. (Client's own dtype="int8" has a scale in each row and
  needs no sample; its codes are not these.)
* `similarity` gives a tensor only where it is given one, an array otherwise.
* `batch_size` and `device` are accepted and ignored: the pool batches by length and decides where it computes.
* Tokens, token vectors and training do not come over: BadRequest.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, Literal, TypedDict, Unpack, get_args

import numpy as np
from numpy.typing import ArrayLike

from embedpool.client import Client
from embedpool.client.documents import Keywords
from embedpool.errors import BadDimension, BadRequest
from embedpool.integrations import similarity
from embedpool.integrations.access import Access, Array, Reach, Settings, prompted
from embedpool.protocol import ModelCard

Precision = Literal["float32", "int8", "uint8", "binary", "ubinary"]

_logger = logging.getLogger(__name__)


class Arguments(TypedDict, total=False):
    """Those of encode after the prompts."""

    batch_size: int
    show_progress_bar: bool | None
    output_value: str | None
    precision: Precision
    convert_to_numpy: bool
    convert_to_tensor: bool
    device: Any
    normalize_embeddings: bool
    truncate_dim: int | None


class SentenceTransformer:
    """`SentenceTransformer("all-MiniLM-L6-v2")`: the model that a pool must serve, by its name or hub id; "" takes any.

    `endpoint` and the other keywords are those of access.Settings, `client` a Client or Pool that you close yourself. Prompts
    are named by `query_prompt`, `document_prompt` and each call's `prompt_name`. Threads may share one; it can be pickled and
    deep-copied. Raises BadRequest and its children (ValueErrors), Overloaded, TimedOut, NotRunning, as Client does.
    """

    device = "cpu"

    def __init__(
        self,
        model_name_or_path: str = "",
        *,
        client: Client | None = None,
        truncate_dim: int | None = None,
        similarity_fn_name: similarity.Name = "cosine",
        ranges: ArrayLike | None = None,
        **given: Unpack[Reach],
    ) -> None:
        settings = Settings(model=model_name_or_path.rpartition("/")[2], **given)  # a pool's names are without an owner
        self._access = Access(settings, client)
        self._query_prompt, self._document_prompt = settings.query_prompt, settings.document_prompt
        self._ranges = None if ranges is None else np.array(ranges, np.float32)
        self.truncate_dim = truncate_dim
        self.similarity_fn_name: similarity.Name = similarity_fn_name

    # ── vectors ──

    def encode(
        self,
        inputs: str | Iterable[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: str | None = "sentence_embedding",
        precision: Precision = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,  # noqa: ARG002 - of the interface, ignored
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
    ) -> Any:
        """[n, dim] of float32, int8 or uint8, or [n, ⌈dim / 8⌉] of int8 (binary) or uint8 (ubinary); [dim] for one string;
        float32[0] for no texts. The array is the caller's own, not a view of shared memory.

        `prompt` is put before each text; without one, the model's prompt named `prompt_name`, or its default one, which few
        models have. The first `truncate_dim` values,
        all where that is more than there are, are of unit length if `normalize_embeddings`. A tensor with `convert_to_tensor`,
        a list of tensors with neither it nor `convert_to_numpy`. `show_progress_bar` None draws one where this module's log
        level is INFO or lower. Raises BadRequest for what a pool cannot give, and what Client.embed_documents does.
        """
        _check(output_value, batch_size, precision)
        keywords: Keywords = {**_prompt(prompt_name, prompt, self._card()), "dim": self._dim(truncate_dim)}
        keywords["normalize"] = normalize_embeddings
        progress = _logger.isEnabledFor(logging.INFO) if show_progress_bar is None else show_progress_bar
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        found = self._encoded(texts, precision, keywords, progress) if texts else np.zeros(0, np.float32)
        as_tensor = convert_to_tensor or not convert_to_numpy
        rows: Any = _torch().from_numpy(found) if as_tensor else found
        if isinstance(inputs, str):
            return rows[0]
        return rows if convert_to_tensor or convert_to_numpy else list(rows)

    def encode_query(
        self,
        inputs: str | Iterable[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        **arguments: Unpack[Arguments],
    ) -> Any:
        """As encode, with the model's query prompt, if it has one, where no other is given."""
        chosen = prompt_name if prompt_name is not None or prompt is not None else self._usual("query")
        return self.encode(inputs, chosen, prompt, **arguments)

    def encode_document(
        self,
        inputs: str | Iterable[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        **arguments: Unpack[Arguments],
    ) -> Any:
        """As encode, with the model's prompt for documents, if it has one, where no other is given."""
        chosen = prompt_name if prompt_name is not None or prompt is not None else self._usual("document", "passage", "corpus")
        return self.encode(inputs, chosen, prompt, **arguments)

    def _encoded(self, texts: list[str], precision: Precision, keywords: Keywords, progress: bool) -> Array:
        if precision in ("int8", "uint8"):
            return self._codes(self._access.plain(texts, keywords, progress=progress), precision)
        # A copy: the caller may write to it, and may keep it as long as it likes.
        return self._access.plain(texts, {**keywords, "dtype": precision}, progress=progress).copy()

    def _codes(self, vectors: Array, precision: Precision) -> Array:
        """A value's code is the step, of 256 from its dimension's least to its greatest value, in which it lies; values beyond
        have the first or the last. int8 codes are those of uint8 less 128."""
        if self._ranges is None:
            raise BadRequest(
                f"the precision {precision} needs SentenceTransformer(ranges=...), float[2, dim] with the least and greatest"
                " value per dimension of a sample of your texts: with ranges of each call's own texts, a text would have other"
                " codes in every call"
            )
        if self._ranges.shape != (2, vectors.shape[1]):
            raise BadDimension(f"ranges has the shape {list(self._ranges.shape)}, not [2, {vectors.shape[1]}]")
        least, greatest = self._ranges
        steps = (greatest - least) / np.float32(255)
        steps[steps == 0] = 1  # a dimension in which the sample had one value
        codes = np.clip(np.floor((vectors - least) / steps), 0, 255)
        found: Array = codes.astype(np.uint8) if precision == "uint8" else (codes - 128).astype(np.int8)
        return found

    # ── the model ──

    def get_embedding_dimension(self) -> int:
        """Of the vectors that encode gives."""
        return self._dim(None) or self._card().dim

    def get_sentence_embedding_dimension(self) -> int:
        """The same, by its older name."""
        return self.get_embedding_dimension()

    @property
    def max_seq_length(self) -> int:
        """How many tokens of a text the model reads. It is the pool's, and cannot be set here."""
        return self._card().max_tokens

    def tokenize(self, texts: Any) -> Any:  # noqa: ARG002 - of the interface
        """Raises BadRequest: a pool gives vectors and no tokens."""
        raise BadRequest("a pool gives vectors and no tokens: load the model's tokenizer with the tokenizers package")

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """float32[n, m], of each of [n, dim] or [dim] with each of [m, dim] or [dim], by `similarity_fn_name`; distances are
        negative. A tensor if one is given."""
        return _like(similarity.matrix(self.similarity_fn_name, embeddings1, embeddings2), embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """float32[n], of each of [n, dim] with the one at its place in [n, dim]; else as similarity."""
        return _like(similarity.pairwise(self.similarity_fn_name, embeddings1, embeddings2), embeddings1, embeddings2)

    def close(self) -> None:
        """Ends the sessions that this object has made. A client that was handed in stays open."""
        self._access.close()

    def _card(self) -> ModelCard:
        return self._access.warm_up()

    def _usual(self, *names: str) -> str | None:
        said = self._query_prompt if names[0] == "query" else self._document_prompt
        return said or next((name for name in names if name in self._card().prompts), None)

    def _dim(self, truncate_dim: int | None) -> int:
        """For a request: 0 for all. Raises BadDimension."""
        wanted = self.truncate_dim if truncate_dim is None else truncate_dim
        if wanted is None:
            return 0
        if wanted < 1:
            raise BadDimension(f"truncate_dim is at least 1, not {wanted}")
        return min(wanted, self._card().dim)


def _check(output_value: str | None, batch_size: int, precision: str) -> None:
    if output_value != "sentence_embedding":
        raise BadRequest(f"a pool gives one vector per text: output_value is sentence_embedding, not {output_value!r}")
    if batch_size <= 0:
        raise BadRequest(f"batch_size is a positive number, not {batch_size!r}")
    if precision not in get_args(Precision):
        raise BadRequest(f"precision is one of {', '.join(get_args(Precision))}, not {precision!r}")


def _prompt(name: str | None, text: str | None, card: ModelCard) -> Keywords:
    """Of both, the text counts. With neither it is the one that the model's own configuration has as its default, if any."""
    if text is not None:
        return {"prompt": text}
    return {"prompt_name": name} if name is not None else prompted(card, card.default_prompt)


def _like(found: Array, *given: Any) -> Any:
    tensors = any(type(each).__module__.partition(".")[0] == "torch" for one in given for each in (one, *_first(one)))
    return _torch().from_numpy(found) if tensors else found


def _first(given: Any) -> list[Any]:
    return given[:1] if isinstance(given, list) else []


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise BadRequest("tensors need PyTorch, which is not installed: leave convert_to_numpy=True") from error
    return torch
