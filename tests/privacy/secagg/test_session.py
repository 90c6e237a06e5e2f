"""Whole sessions: what comes out is the plain sum of those online, or nothing."""

import itertools
import random
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.errors import Aborted, Refused
from privacy.secagg.identity import Roster
from privacy.secagg.rules import dropouts_survived, least_threshold
from privacy.secagg.server import Server
from tests.privacy.secagg.driver import Federation, Session, federation

STAYS = 6


@pytest.fixture(scope="module")
def four() -> Iterator[Federation]:
    """Four banks, of which one may be gone: t = 3."""
    with federation(4) as made:
        yield made


def _run(made: Federation, drops: tuple[int, ...]) -> None:
    """A session in which bank i answers the exchanges before drops[i]: the sum of those online, or an abort where too few are left."""
    session = Session(Server(made.header, made.roster), made.clients(), dict(zip(made.roster.names, drops, strict=True)))
    left = [sum(drop > exchange for drop in drops) for exchange in range(STAYS)]
    short = [exchange for exchange, banks in enumerate(left) if banks < made.header.threshold]
    if short:
        with pytest.raises(Aborted, match=f"session {made.header.session.hex()[:8]}, exchange {short[0]}: {left[short[0]]} banks"):
            session.run()
    else:
        total = made.sum([bank for bank, drop in session.drops.items() if drop > 2])
        np.testing.assert_array_equal(session.run(), total)
        for bank, client in session.clients.items():
            if session.drops[bank] == STAYS:
                np.testing.assert_array_equal(client.total(), total)
                assert client.exchange == 7
    assert not session.refusals


@pytest.mark.parametrize("banks", range(2, 11))
def test_the_sum_is_the_plain_sum(banks: int) -> None:
    with federation(banks) as made:
        _run(made, (STAYS,) * banks)


@pytest.mark.parametrize("bits", [12, 17, 32])
def test_any_modulus_gives_the_same_sum(bits: int) -> None:
    with federation(3, length=100) as made:
        made.next_header(modulus_bits=bits)
        _run(made, (STAYS,) * 3)


@pytest.mark.parametrize("length", [1, 104_729, 1_000_000])
def test_any_length_gives_the_same_sum(length: int) -> None:
    with federation(3, length=length) as made:
        _run(made, (STAYS, STAYS, 2))


@pytest.mark.parametrize(
    ("banks", "moments"),
    [(4, range(STAYS + 1)), (5, [0, 1, 2, 3, 4, STAYS]), *(pytest.param(n, range(STAYS + 1), marks=pytest.mark.slow) for n in (5, 6))],
)
def test_whenever_banks_vanish_the_sum_is_of_those_online_or_there_is_none(banks: int, moments: Sequence[int]) -> None:
    """All patterns, up to which bank is which: that is drawn anew for each."""
    for drops in itertools.combinations_with_replacement(moments, banks):
        with federation(banks) as made:
            _run(made, tuple(random.sample(drops, banks)))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(STAYS + 1))
def test_whichever_of_four_banks_vanish(first: int) -> None:
    for others in itertools.product(range(STAYS + 1), repeat=3):
        with federation(4) as made:
            _run(made, (first, *others))


def _run_many(banks: int, vanish: list[int]) -> None:
    with federation(banks, colluders=banks // 10) as made:
        vanish = vanish[: dropouts_survived(banks, banks // 10)]
        drops = vanish + [STAYS] * (banks - len(vanish))
        _run(made, tuple(random.sample(drops, banks)))


@settings(max_examples=5, deadline=None)
@given(banks=st.integers(7, 25), vanish=st.lists(st.integers(0, STAYS), max_size=20))
def test_many_banks_of_which_any_may_vanish(banks: int, vanish: list[int]) -> None:
    _run_many(banks, vanish)


@pytest.mark.slow
@settings(max_examples=3, deadline=None)
@given(banks=st.integers(26, 100), vanish=st.lists(st.integers(0, STAYS), max_size=50))
def test_very_many_banks_of_which_any_may_vanish(banks: int, vanish: list[int]) -> None:
    _run_many(banks, vanish)


@pytest.mark.parametrize("drops", [(2, 2, 2, 2), (0, 1, 2, 3), (3, 3, 4, 4), (2, 3, 4, 5), (1, 2, 2, 5)])
def test_four_of_ten_banks_may_vanish_with_one_colluding(drops: tuple[int, ...]) -> None:
    assert dropouts_survived(10, 1) == 4
    with federation(10, colluders=1) as made:
        _run(made, (STAYS, *drops, STAYS, STAYS, STAYS, STAYS, STAYS))


def test_three_banks_of_which_one_may_collude_survive_no_dropout() -> None:
    assert (least_threshold(3, 1), dropouts_survived(3, 1), dropouts_survived(4, 1)) == (3, 0, 1)
    with federation(3, colluders=1) as made:
        _run(made, (STAYS, STAYS, 3))


def test_a_sum_always_holds_two_banks_that_do_not_collude() -> None:
    for banks in range(2, 101):
        for colluders in range(banks - 1):
            threshold = least_threshold(banks, colluders)
            assert 2 * (threshold - 1) <= banks + colluders < 2 * threshold and colluders + 2 <= threshold <= banks


def test_a_threshold_for_a_few_ends_the_session_when_more_come() -> None:
    with federation(5) as made:
        session = Session(Server(made.next_header(least_members=3, threshold=2), made.roster), made.clients())
        with pytest.raises(Refused, match="exchange 0: threshold 2 for 5 banks"):
            session.run()
        assert session.server.over and {client.exchange for client in session.clients.values()} == {1}


def test_a_coordinator_is_refused_a_header_that_its_banks_would_refuse(four: Federation) -> None:
    with pytest.raises(Refused, match="threshold 1 for 2 banks"):
        Server(four.next_header(threshold=1), four.roster)
    four.next_header(threshold=3)


@pytest.mark.parametrize("colluders", [-1, 2])
def test_a_roster_needs_two_banks_that_do_not_collude(four: Federation, colluders: int) -> None:
    with pytest.raises(Refused, match="two banks or more that do not collude"):
        Roster(1, colluders, four.roster.banks[:3])


def test_a_roster_has_each_name_and_key_once(four: Federation) -> None:
    (name, key), other = four.roster.banks[:2]
    for again in ((name, other[1]), ("another", key)):
        with pytest.raises(Refused, match="each name and key once"):
            Roster(1, 0, ((name, key), other, again))
    for alike in (name.upper(), name.replace("0", "\uff10")):
        with pytest.raises(Refused, match="each name and key once"):
            Roster(1, 0, ((name, key), (alike, other[1])))
    for unwritten in ("", "bank\n", "bank\u202e", "\ud800", "b" * 256):
        with pytest.raises(Refused, match="a name that cannot be written"):
            Roster(1, 0, ((unwritten, key), other))
    with pytest.raises(Refused, match="not of 32 bytes"):
        Roster(1, 0, ((name, key), other, ("third", b"key")))
