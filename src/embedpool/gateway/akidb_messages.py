"""The messages of AkiDB's gRPC service as protobuf, and nothing of gRPC: bytes to what akidb.py knows, and answers to bytes.

Their classes are made at import from the table below, without generated files. What protoc generates refuses a protobuf that
is older than the protoc it came from, and is neither typed nor short; four messages are twelve rows. docs/akidb_embedding.proto
is the same for those who write clients, and a test has protoc compare the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from embedpool.errors import BadRequest
from embedpool.gateway.akidb import EmbedRequest, estimated_tokens
from embedpool.gateway.service import Embedded
from embedpool.protocol import ModelCard

PACKAGE = "akidb.embedding.v1"
SERVICE = f"{PACKAGE}.EmbeddingService"
# As in a .proto; a field's number is its place.
MESSAGES = {
    "EmbedRequest": ("repeated string texts", "optional string model", "optional string pooling", "optional bool normalize"),
    "Embedding": ("repeated float values",),
    "UsageInfo": ("uint64 total_tokens", "uint64 duration_ms"),
    "EmbedResponse": ("repeated Embedding embeddings", "string model", "uint32 dimension", "UsageInfo usage"),
    "GetModelInfoRequest": (),
    "GetModelInfoResponse": ("string model", "uint32 dimension", "uint64 max_tokens"),
}
SCALARS = {
    "string": FieldDescriptorProto.TYPE_STRING,
    "bool": FieldDescriptorProto.TYPE_BOOL,
    "float": FieldDescriptorProto.TYPE_FLOAT,
    "uint32": FieldDescriptorProto.TYPE_UINT32,
    "uint64": FieldDescriptorProto.TYPE_UINT64,
}


def described() -> FileDescriptorProto:
    """The table as protobuf's own description of a file."""
    file = FileDescriptorProto(name="akidb_embedding.proto", package=PACKAGE, syntax="proto3")
    for name, rows in MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, row in enumerate(rows, 1):
            _add_field(message, row, number)
    return file


def _add_field(message: DescriptorProto, row: str, number: int) -> None:
    *label, kind, name = row.split()
    field = message.field.add(name=name, number=number, label=FieldDescriptorProto.LABEL_OPTIONAL)
    if kind in SCALARS:
        field.type = SCALARS[kind]
    else:
        field.type, field.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
    if label == ["repeated"]:
        field.label = FieldDescriptorProto.LABEL_REPEATED
    if label == ["optional"]:  # whether it was given can be asked; protobuf keeps that in a oneof of one field
        field.proto3_optional, field.oneof_index = True, len(message.oneof_decl)
        message.oneof_decl.add(name=f"_{name}")


_POOL = DescriptorPool()
_POOL.Add(described())


def _class(name: str) -> Any:
    return GetMessageClass(_POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))


_EmbedRequest, _Embedding = _class("EmbedRequest"), _class("Embedding")
_EmbedResponse, _GetModelInfoResponse = _class("EmbedResponse"), _class("GetModelInfoResponse")


def read_embed(data: bytes) -> EmbedRequest:
    """Raises BadRequest for what is no message. Its fields that are not `texts` and `model` are without effect."""
    try:
        message = _EmbedRequest.FromString(data)
    except DecodeError:
        raise BadRequest("the message is no EmbedRequest") from None
    return EmbedRequest(texts=list(message.texts), model=message.model if message.HasField("model") else None)


def embed_response(asked: EmbedRequest, texts: Sequence[str], found: Embedded) -> bytes:
    message = _EmbedResponse(model=asked.model or found.model, dimension=found.vectors.shape[1])
    message.usage.total_tokens = estimated_tokens(texts)
    message.usage.duration_ms = round(found.seconds * 1e3)
    # A packed field is its length and its values' bytes (protobuf.dev, encoding): a row is taken as it is. Number by number,
    # 32 rows of 768 took 0.5 ms, and take 0.04 ms so.
    dim = found.vectors.shape[1]
    head = _Embedding(values=[0.0] * dim).SerializeToString()[: -4 * dim]
    for row in np.ascontiguousarray(found.vectors, "<f4"):
        message.embeddings.add().MergeFromString(head + row.tobytes())
    data: bytes = message.SerializeToString()
    return data


def model_response(card: ModelCard) -> bytes:
    data: bytes = _GetModelInfoResponse(model=card.name, dimension=card.dim, max_tokens=card.max_tokens).SerializeToString()
    return data
