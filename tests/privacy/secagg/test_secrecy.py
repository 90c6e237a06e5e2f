"""What leaves a bank says nothing of its vector: masked vectors are uniform, whatever is in them, and no two have anything in common."""

import itertools

import numpy as np
import pytest
from scipy import stats

from privacy.secagg.fixed_point import FixedPoint, unpack
from privacy.secagg.messages import Masked, Message
from privacy.secagg.server import Server
from privacy.secagg.vault import Vault
from privacy.stream import Stream
from tests.privacy.secagg.attacks import gone
from tests.privacy.secagg.driver import Federation, Session, federation

LENGTH, BITS = 200_000, 12
SURE = 1e-6
INPUTS = {"zeros": np.zeros(LENGTH), "all at the clip": np.ones(LENGTH), "two values": np.arange(LENGTH) % 2 - 0.5}


def _p(coordinates: np.ndarray) -> float:
    """Of chi-square for integers of 12 bits that are uniform."""
    return float(stats.chisquare(np.bincount(coordinates & (2**BITS - 1), minlength=2**BITS)).pvalue)


def _vectors(made: Federation) -> list[np.ndarray]:
    """As they leave the banks in a session."""
    vectors: list[np.ndarray] = []

    def collect(message: Message) -> Message:
        if isinstance(message, Masked):
            vectors.append(unpack(np.frombuffer(message.packed, np.uint8), LENGTH, BITS))
        return message

    clients = made.clients()
    Session(Server(made.header, made.roster), clients, to_server=collect).run()
    for client in clients.values():
        client.end()
    return vectors


@pytest.mark.parametrize("values", INPUTS.values(), ids=INPUTS)
def test_masked_vectors_are_uniform_and_share_nothing_with_others_of_the_same_input(
    values: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of three banks in a session, and of the same banks in another; the vault is made to allow that."""
    monkeypatch.setattr(Vault, "claim", gone)
    with federation(3, length=LENGTH) as made:
        made.next_header(modulus_bits=BITS)
        made.updates = dict.fromkeys(made.roster.names, values.astype(np.float32))
        vectors = _vectors(made)
        made.next_header()
        vectors += _vectors(made)
    assert len(vectors) == 6 and min(map(_p, vectors)) > SURE
    assert min(_p(one - other) for one, other in itertools.combinations(vectors, 2)) > SURE


def test_what_is_not_masked_or_is_masked_alike_would_be_seen() -> None:
    encoding, random = FixedPoint(3, 1.0, 8, BITS), np.random.default_rng(0)
    vectors = [encoding.encode(values.astype(np.float32), Stream()) for values in INPUTS.values()]
    mask = random.integers(0, 2**32, LENGTH, np.uint32)
    assert max(map(_p, vectors)) < SURE < min(_p(vector + mask) for vector in vectors)
    assert max(_p(one + mask - (other + mask)) for one, other in itertools.combinations(vectors, 2)) < SURE
