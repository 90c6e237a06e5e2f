"""What a bank holds of vectors: none that has served, and none is read twice to be hashed."""

import json
import os
import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Iterator

import pytest

from privacy.secagg import messages
from privacy.secagg.codec import Buffer
from privacy.secagg.messages import Masked, Message, Sum, View
from privacy.secagg.server import Server
from tests.helpers import REPOSITORY
from tests.privacy.secagg.driver import Session, federation, scratch


def test_a_vector_is_hashed_once_by_each_who_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed, fields = Counter[type](), messages.encode_fields

    def count(value: Message, kind: type, without: str = "") -> Iterator[Buffer]:
        hashed.update([kind] if without else [])
        return fields(value, kind, without)

    with federation(3) as made:
        monkeypatch.setattr(messages, "encode_fields", count)
        Session(Server(made.header, made.roster), made.clients()).run()
    assert (hashed[Masked], hashed[Sum]) == (6, 3), "a masked vector by its bank and the coordinator, the sum by each bank"


def test_a_masked_vector_leaves_memory_when_the_next_answer_is_given() -> None:
    with federation(3) as made:
        session, maps = Session(Server(made.header, made.roster), made.clients()), dict[str, weakref.ref[object]]()

        def look(bank: str, message: Message) -> None:
            if message.exchange == View.exchange:
                (masked,) = session.clients[bank].resend()
                assert isinstance(masked, Masked)
                maps[bank] = weakref.ref(masked.packed.obj)
            elif message.exchange > View.exchange:
                assert maps[bank]() is None

        session.before = look
        session.run()
        assert len(maps) == 3


@pytest.mark.slow
def test_a_bank_holds_at_most_two_and_a_half_vectors_of_forty_million() -> None:
    """Its update, and the same masked; at the end the sum, and the same decoded. Python and libraries count too."""
    with scratch() as folder:
        command = [sys.executable, "benchmarks/secagg.py", "--cases", "3x40000000", "--repeats", "1", "--json", str(folder / "results")]
        subprocess.run(command, cwd=REPOSITORY, env=os.environ | {"TMPDIR": str(folder)}, check=True, timeout=500)
        (ours,) = [each for each in json.loads((folder / "results").read_text())["results"] if each["contender"] == "ours"]
        assert len(ours["bank_peaks"]) == Sum.exchange + 2 and ours["bank_peaks"][-1] <= 2.5 * 4 * ours["case"]["elements"]
