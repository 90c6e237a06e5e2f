"""What coordinator and bank write to one another in a round; how it travels is another's affair.

    coordinator     bank answers         body
    Invitation                           the round's adapter, safetensors
                    Answer               its keys (privacy/secagg/client.py, exchange 0)
                    Contribution         its vector, float32: where training.secure_aggregation is false
    Next                                 a message of secure aggregation, exchanges 1 to 6
                    Answer               the bank's, 1 to 5
                    Done                 to exchange 6
    Close                                -
                    Done

To any of them a bank may answer Refusal or Failure instead. A letter is six bytes of format, four of length, so many of canonical JSON, and
a body. Nothing can be written in two ways. An invitation is signed by the coordinator's identity, and its digest stands in all letters that
follow from it: one that comes late, twice or for another attempt is known by it.
"""

import hashlib
import re
from typing import Annotated, Any, Literal, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from federation.config import TrainingConfig
from federation.enrolment.member import Name, signed_by
from federation.enrolment.roster import Roster
from federation.errors import FactsError, NotTrusted
from federation.files import Digest, Facts, Signature
from federation.policy import Sha256
from federation.rounds.aggregate import Layout
from privacy.secagg.codec import Buffer, hashed
from privacy.secagg.messages import UNSIGNED, Header

_MAGIC = b"CFL\x00\x00\x01"
_MOST_FACTS = 2**20  # bytes
_FOLDERS = re.compile(r"(?<![\w.-])(?:/[^/\s:]+)*/(?=[^/\s:])")
_MOST_TEXT = 2000
Text = Annotated[str, Field(max_length=_MOST_TEXT)]
Kind = Literal["train", "evaluate"]


class Invitation(Facts):
    """An attempt at a round begins; all that a bank needs to say yes or no."""

    letter: Literal["invitation"] = "invitation"
    federation: Name
    version: int
    """The roster's, and its hash"""
    roster: Digest
    run: Name
    round: int = Field(ge=1, lt=2**31)
    attempt: int = Field(ge=1, lt=2**31)
    before: int = Field(ge=0)
    """The attempt at the round before that was aggregated; 0 in the first round"""
    training: TrainingConfig
    bundle: Sha256
    model: Digest
    """Of the body"""
    nonce: Annotated[bytes, Field(min_length=16, max_length=16)]
    deadline: int
    """When the attempt ends at the latest, seconds since 1970 by the coordinator's clock"""
    signature: Signature = UNSIGNED

    @model_validator(mode="after")
    def _check_round(self) -> "Invitation":
        if self.round > self.training.rounds + bool(self.training.metric_names):
            raise FactsError(f"round {self.round} of a run of {self.training.rounds}")
        return self

    @property
    def kind(self) -> Kind:
        """The last model is evaluated in a round of its own."""
        return "train" if self.round <= self.training.rounds else "evaluate"

    @property
    def digest(self) -> bytes:
        """Of all but the signature: what is signed."""
        return hashed("federation invitation", self.model_copy(update={"signature": UNSIGNED}).canonical)

    def signed(self, key: Ed25519PrivateKey) -> "Invitation":
        return self.model_copy(update={"signature": key.sign(self.digest)})

    def check(self, coordinator: bytes, body: Buffer) -> None:
        """NotTrusted unless that coordinator has signed it, with this body."""
        if not signed_by(coordinator, self.signature, self.digest) or hashlib.sha256(body).digest() != self.model:
            raise NotTrusted("an invitation that the roster's coordinator has not signed", "who has sent it?")

    def length(self, layout: Layout) -> int:
        """Coordinates of a bank's vector: the update, its weight, its metrics."""
        return (layout.length if self.kind == "train" else 0) + 1 + len(self.training.metric_names)

    def header(self, roster: Roster, layout: Layout) -> Header:
        """The session of secure aggregation that it opens. Both sides derive it, so that there is nothing in it to disagree about; and it
        names the invitation, so that banks which were told different things are in no session together."""
        training = self.training
        return Header(
            run=self.run,
            round=self.round,
            attempt=self.attempt,
            nonce=self.nonce,
            model=self.model,
            config=self.digest,
            length=self.length(layout),
            clip=training.encoding.clip,
            fraction_bits=training.encoding.fraction_bits,
            modulus_bits=training.encoding.modulus_bits,
            least_members=training.quorum,
            threshold=training.threshold,
            roster=roster.for_sums.hash,
            deadline=self.deadline,
        )


UNREAD = bytes(32)
"""In place of an invitation that could not be read"""


class _Following(Facts):
    invitation: Digest
    """The invitation's from which it follows, or UNREAD"""


class Next(_Following):
    letter: Literal["next"] = "next"


class Close(_Following):
    """The attempt is over."""

    letter: Literal["close"] = "close"
    banks: tuple[Name, ...]
    """Whose updates are in the sum; none where there is none"""
    model: Digest | None
    """Hash of the adapter that came of it"""


class Answer(_Following):
    letter: Literal["answer"] = "answer"


class Contribution(_Following):
    letter: Literal["contribution"] = "contribution"


class Refusal(_Following):
    """The bank's word: which of its rules forbids it."""

    letter: Literal["refusal"] = "refusal"
    rule: Text
    asked: Text
    allowed: Text


class Failure(_Following):
    """The bank would have, but something went wrong there."""

    letter: Literal["failure"] = "failure"
    message: Text


class Done(_Following):
    letter: Literal["done"] = "done"


Request = Annotated[Invitation | Next | Close, Field(discriminator="letter")]
Reply = Annotated[Answer | Contribution | Refusal | Failure | Done, Field(discriminator="letter")]
_REQUESTS: TypeAdapter[Invitation | Next | Close] = TypeAdapter(Request)
_REPLIES: TypeAdapter[Answer | Contribution | Refusal | Failure | Done] = TypeAdapter(Reply)
T = TypeVar("T", bound=Facts)


def short(text: str) -> str:
    """As much of a text as a letter takes. Where a bank keeps its files is nobody's business: of paths, names are left."""
    text = _FOLDERS.sub("", text)
    return text if len(text) <= _MOST_TEXT else text[: _MOST_TEXT - 3] + "..."


def seal(facts: Facts, *body: Buffer) -> bytes:
    """A letter's bytes; the body may come in pieces."""
    head = facts.canonical
    return b"".join((_MAGIC, len(head).to_bytes(4, "big"), head, *body))


def request(data: Buffer) -> tuple[Invitation | Next | Close, memoryview]:
    """A coordinator's letter and a view of its body. Raises FactsError."""
    return _open(_REQUESTS, data)


def reply(data: Buffer) -> tuple[Answer | Contribution | Refusal | Failure | Done, memoryview]:
    """A bank's. Raises FactsError."""
    return _open(_REPLIES, data)


def read(kind: type[T], data: Buffer) -> tuple[T, memoryview]:
    """Facts of one kind and the body that was sealed with them. Raises FactsError."""
    return _open(TypeAdapter(kind), data)


def _open(adapter: TypeAdapter[Any], data: Buffer) -> tuple[Any, memoryview]:
    view = memoryview(data)
    size = int.from_bytes(view[6:10], "big")
    if view[:6] != _MAGIC or size > min(_MOST_FACTS, len(view) - 10):
        raise FactsError("not a letter of this format and version", "all banks and the coordinator run the same version")
    head = bytes(view[10 : 10 + size])
    try:
        facts = adapter.validate_json(head)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise FactsError(f"a letter with a mistake at {where or 'its beginning'}", "do both sides run the same version?") from error
    if facts.canonical != head:
        raise FactsError("a letter that is not written as this version writes it", "do both sides run the same version?")
    return facts, view[10 + size :]
