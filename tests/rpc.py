"""A gRPC client as others write it: its messages are protoc's, from docs/akidb_embedding.proto, and not the gateway's own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.message_factory import GetMessages
from grpc_tools import protoc

PROTO = Path(__file__).parent.parent / "docs" / "akidb_embedding.proto"
PACKAGE = "akidb.embedding.v1"


@cache
def compiled() -> FileDescriptorProto:
    """What protoc makes of the page."""
    with tempfile.TemporaryDirectory() as directory:
        made = Path(directory) / "made"
        arguments = ["protoc", f"-I{PROTO.parent}", f"--descriptor_set_out={made}", PROTO.name]
        assert protoc.main(arguments) == 0
        return FileDescriptorSet.FromString(made.read_bytes()).file[0]


@cache
def messages() -> dict[str, Any]:
    """Its classes, by their names."""
    return {name.removeprefix(f"{PACKAGE}."): kind for name, kind in GetMessages([compiled()]).items()}


def embed_request(texts: Sequence[str], **more: object) -> Any:
    return messages()["EmbedRequest"](texts=texts, **more)


Method = Callable[..., Any]


class Stub:
    """Both methods over a channel."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.embed = self._method("Embed")
        self.model_info = self._method("GetModelInfo")

    def _method(self, name: str) -> Method:
        answer = "EmbedResponse" if name == "Embed" else "GetModelInfoResponse"
        path = f"/{PACKAGE}.EmbeddingService/{name}"
        method: Method = self.channel.unary_unary(
            path, lambda message: message.SerializeToString(), messages()[answer].FromString
        )
        return method


@contextmanager
def stub(address: str, **options: int) -> Iterator[Stub]:
    given = [(f"grpc.{name}", value) for name, value in options.items()]
    with grpc.insecure_channel(address, given) as channel:
        yield Stub(channel)
