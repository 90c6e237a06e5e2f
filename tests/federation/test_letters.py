"""Letters: what was written is read, nothing else is, and a signature covers all of an invitation."""

import hashlib
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from federation.config import TrainingConfig
from federation.errors import FactsError, NotTrusted
from federation.rounds import letters
from federation.rounds.letters import Answer, Close, Contribution, Done, Failure, Invitation, Next, Refusal
from tests.federation.loopback import BUNDLE, TRAINING

KEY = Ed25519PrivateKey.generate()
BODY = b"an adapter"
HASH = hashlib.sha256(BODY).digest()
INVITATION = Invitation(
    federation="orchard",
    version=1,
    roster=bytes(32),
    run="intents-1",
    round=2,
    attempt=1,
    before=3,
    training=TrainingConfig.model_validate(TRAINING),
    bundle=BUNDLE,
    model=HASH,
    nonce=bytes(16),
    deadline=1,
).signed(KEY)
REPLIES = [
    Answer(invitation=HASH),
    Contribution(invitation=HASH),
    Refusal(invitation=HASH, rule="hours", asked="12:00", allowed="20:00-06:00"),
    Failure(invitation=HASH, message="no room on the disk"),
    Done(invitation=HASH),
]


@pytest.mark.parametrize("facts", [INVITATION, Next(invitation=HASH), Close(invitation=HASH, banks=("alder",), model=None)])
def test_a_request_is_read_as_it_was_written(facts: Any) -> None:
    read, body = letters.request(letters.seal(facts, BODY[:4], memoryview(BODY)[4:]))
    assert read == facts and body == BODY


@pytest.mark.parametrize("facts", REPLIES)
def test_a_reply_is_read_as_it_was_written_and_is_no_request(facts: Any) -> None:
    sealed = letters.seal(facts, BODY)
    assert letters.reply(sealed) == (facts, BODY)
    with pytest.raises(FactsError, match="a letter with a mistake"):
        letters.request(sealed)


def test_a_letter_that_was_cut_off_or_has_another_format_is_none() -> None:
    sealed = letters.seal(REPLIES[0])
    for end in range(len(sealed)):
        with pytest.raises(FactsError):
            letters.reply(sealed[:end])
    with pytest.raises(FactsError, match="format and version"):
        letters.reply(b"CFL\x00\x00\x02" + sealed[6:])


@pytest.mark.parametrize(
    "text",
    [
        '{"invitation":"%s","letter":"done", "x":1}',
        '{"letter":"done","invitation":"%s"}',
        '{"invitation": "%s","letter":"done"}',
        '{"invitation":"%s","letter":"failure","message":"' + "x" * 2001 + '"}',
        "[]",
        "\xff",
    ],
)
def test_nothing_can_be_written_in_two_ways(text: str) -> None:
    head = text.replace("%s", HASH.hex()).encode("latin-1")
    with pytest.raises(FactsError):
        letters.reply(b"CFL\x00\x00\x01" + len(head).to_bytes(4, "big") + head)


def test_only_the_coordinators_signature_over_this_body_counts() -> None:
    coordinator = KEY.public_key().public_bytes_raw()
    INVITATION.check(coordinator, BODY)
    for other, body in ((Ed25519PrivateKey.generate().public_key().public_bytes_raw(), BODY), (coordinator, BODY + b".")):
        with pytest.raises(NotTrusted):
            INVITATION.check(other, body)


@pytest.mark.parametrize("field", sorted(Invitation.model_fields.keys() - {"letter", "signature"}))
def test_the_signature_covers_every_field(field: str) -> None:
    value = getattr(INVITATION, field)
    other: Any
    match value:
        case int():
            other = value + 1
        case str():
            other = value + "0"
        case bytes():
            other = bytes([value[0] ^ 1]) + value[1:]
        case _:
            other = value.model_copy(update={"rounds": 9})
    assert other != value
    with pytest.raises(NotTrusted):
        INVITATION.model_copy(update={field: other}).check(KEY.public_key().public_bytes_raw(), BODY)


def test_a_round_after_the_last_evaluates_and_there_is_none_after_it() -> None:
    def invitation(round: int, **training: Any) -> dict[str, Any]:
        return json.loads(INVITATION.canonical) | {"round": round, "training": TRAINING | training}

    assert [Invitation.model_validate_json(json.dumps(invitation(round))).kind for round in (2, 3)] == ["train", "evaluate"]
    for wrong in (invitation(4), invitation(3, evaluation="off", metrics=[])):
        with pytest.raises(ValidationError, match="of a run of 2"):
            Invitation.model_validate_json(json.dumps(wrong))


def test_a_text_of_any_length_fits() -> None:
    assert letters.short("x" * 2000) == "x" * 2000
    assert len(letters.short("x" * 2001)) == 2000
