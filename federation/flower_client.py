"""What a bank runs of Flower."""

from flwr.proto.fab_pb2 import GetFabResponse
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]


def fab_of(response: bytes) -> bytes:
    """The bundle in what the fleet's get-fab answers, read as the SuperNode reads it. ValueError where it cannot be read."""
    try:
        content: bytes = GetFabResponse.FromString(response).fab.content
    except DecodeError as error:
        raise ValueError("not an answer to get-fab") from error
    return content
