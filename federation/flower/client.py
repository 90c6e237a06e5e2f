"""Flower's ClientApp at a bank: it hands the bytes of a message to the bank's own process, and carries the answer back.

Flower starts this anew for every message, so it imports no torch and decides nothing: what a bank does is in rounds/bank.py. What goes
wrong here is an error reply, whose text the coordinator reads: it says nothing of the bank but what is in this file.
"""

import hashlib
from pathlib import Path

from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.fab_pb2 import GetFabResponse
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from federation import bundle
from federation.flower.processes import is_held
from trainers.spool import Spool

_LETTER = "letter"
_FAILED = 100
"""Error codes below are Flower's own"""

app = ClientApp()


@app.train()
def carry(message: Message, context: Context) -> Message:
    """The answer of the bank's process, which is `holding` the spool, however long it takes; or at once the reason why there is none."""
    theirs, ours = str(context.run_config["code"]), bundle.code()
    if theirs != ours:
        return _failed(message, f"this bank has other code than the coordinator: {ours[:12]}, not {theirs[:12]}; install the same version")
    try:
        answer = _asked(Path(str(context.node_config["spool"])), unpacked(message.content))
    except OSError as error:
        return _failed(message, f"this bank cannot keep messages: {error.strerror}")
    if answer is None:
        return _failed(message, "this bank's own process does not run")
    return Message(packed(answer), reply_to=message)


def _asked(spool: Path, request: bytes) -> bytes | None:
    """The bank's answer; None where its process does not run."""
    if not is_held(spool):
        return None
    asking, name = Spool(spool), hashlib.sha256(request).hexdigest()
    answer = asking.ask(name, request, waiting=lambda: is_held(spool))
    if answer is not None:
        asking.withdraw(name)
    return answer


def packed(content: bytes) -> RecordDict:
    """As an array, which Flower sends in chunks of 5 MB."""
    return RecordDict({_LETTER: ArrayRecord({_LETTER: Array("uint8", (len(content),), "bytes", content)})})


def unpacked(record: RecordDict) -> bytes:
    """What was packed. KeyError for another record."""
    return record.array_records[_LETTER][_LETTER].data


def fab_of(response: bytes) -> bytes:
    """The bundle in what the fleet's get-fab answers, read as the SuperNode reads it. ValueError where it cannot be read."""
    try:
        content: bytes = GetFabResponse.FromString(response).fab.content
    except DecodeError as error:
        raise ValueError("not an answer to get-fab") from error
    return content


def _failed(message: Message, reason: str) -> Message:
    return Message(Error(_FAILED, reason), reply_to=message)
