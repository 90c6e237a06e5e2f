"""What two banks derive from their keys: the same, and for nothing else."""

from dataclasses import replace

import pytest

from privacy.errors import Misbehaviour
from privacy.secagg.agreement import Secrets, agree, commitment, members_hash, pair_masks, seal, self_mask, unseal, view_hash
from privacy.secagg.messages import Box, Keys
from tests.privacy.secagg.driver import federation

SESSION = b"s" * 32
SHARES = (b"a" * 33, b"b" * 33)


def _make_bank(name: str, session: bytes = SESSION) -> tuple[Secrets, Keys]:
    secrets = Secrets.fresh()
    return secrets, secrets.publish(session, name)


def test_what_one_bank_adds_for_another_is_what_that_one_subtracts() -> None:
    with federation(3) as made:
        (one, one_keys), (two, two_keys) = _make_bank("bank0"), _make_bank("bank1")
        members = members_hash([one_keys, two_keys])
        ((seed, sign),) = pair_masks(made.header, made.roster, members, "bank0", one.masking, [two_keys])
        assert pair_masks(made.header, made.roster, members, "bank1", two.masking, [one_keys]) == [(seed, -sign)] and sign == 1


def test_masks_cancel_only_among_banks_with_the_same_header_and_members() -> None:
    with federation(3) as made:
        (one, one_keys), (_, two_keys) = _make_bank("bank0"), _make_bank("bank1")
        members = members_hash([one_keys, two_keys])
        headers = [made.header, replace(made.header, model=b"x" * 32), replace(made.header, config=b"x" * 32), made.next_header()]
        seeds = {pair_masks(header, made.roster, members, "bank0", one.masking, [two_keys])[0][0] for header in headers}
        seeds |= {pair_masks(headers[0], made.roster, other, "bank0", one.masking, [two_keys])[0][0] for other in (members[::-1], SESSION)}
        assert len(seeds) == 6


def test_a_box_opens_for_its_receiver_and_nobody_else() -> None:
    (one, one_keys), (two, two_keys), (three, _) = _make_bank("one"), _make_bank("two"), _make_bank("three")
    box = seal(one.encryption, "one", two_keys, *SHARES)
    assert unseal(two.encryption, one_keys, box) == SHARES
    back = Box(SESSION, "two", "one", box.seed_share, box.key_share, box.sealed)
    for private, giver, wrong in (
        (three.encryption, one_keys, box),
        (one.encryption, two_keys, back),
        (two.encryption, one_keys, replace(box, receiver="three")),
        (two.encryption, replace(one_keys, session=bytes(32)), box),
        (two.masking, one_keys, box),
    ):
        with pytest.raises(Misbehaviour, match="a box that does not open"):
            unseal(private, giver, wrong)


def test_boxes_to_two_banks_have_nothing_in_common() -> None:
    one, (_, two_keys), (_, three_keys) = Secrets.fresh(), _make_bank("two"), _make_bank("three")
    two, three = (seal(one.encryption, "one", keys, *SHARES) for keys in (two_keys, three_keys))
    assert not {two.sealed, two.seed_share, two.key_share} & {three.sealed, three.seed_share, three.key_share}


@pytest.mark.parametrize("point", [bytes(32), (1).to_bytes(32, "little"), (2**255 - 20).to_bytes(32, "little")])
def test_a_point_of_small_order_is_misbehaviour(point: bytes) -> None:
    with pytest.raises(Misbehaviour, match="bank has published a key that anybody agrees with") as caught:
        agree(Secrets.fresh().masking, point, "bank")
    assert caught.value.banks == ("bank",)


def test_a_seed_has_one_commitment_and_one_mask_for_each_session_and_bank() -> None:
    seed, places = b"x" * 32, [(SESSION, "one"), (SESSION, "two"), (bytes(32), "one")]
    derived = [function(session, bank, seed) for function in (commitment, self_mask) for session, bank in places]
    assert len(set(derived)) == 6 and seed not in derived


def test_a_view_is_of_members_their_keys_and_who_is_online() -> None:
    (_, one), (_, two), (_, other) = _make_bank("one"), _make_bank("two"), _make_bank("two")
    views = {view_hash(members_hash(keys), online) for keys in ([one, two], [one, other], [one]) for online in (["one"], ["one", "two"])}
    assert len(views) == 6


def test_secrets_are_not_shown_when_they_are_printed() -> None:
    secrets = Secrets.fresh()
    assert Secrets.from_bytes(secrets.to_bytes()) == secrets and "Secrets object at" in repr(secrets)
