"""An attempt at a round as the coordinator sees it: exchanges, each with letters to banks and their answers, and at the end a sum.

`Masked` is secure aggregation (privacy/secagg/server.py); `Open`, where training.secure_aggregation is false, has one exchange, in which
the coordinator is sent every bank's vector as it is. Methods raise SecAggError.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from federation.enrolment.roster import Roster
from federation.rounds import letters
from federation.rounds.aggregate import Layout
from federation.rounds.letters import Answer, Contribution, Invitation
from privacy.errors import Aborted, ProtocolError
from privacy.secagg.messages import Masked as MaskedVector
from privacy.secagg.messages import Message, Signed
from privacy.secagg.server import Letter, Server


class Session(Protocol):
    exchanges: tuple[str, ...]
    """By their names in `training.timeouts`"""
    banks: tuple[str, ...]
    """Whose vectors are in the sum"""

    @property
    def over(self) -> bool:
        """Nothing more is taken: it is complete, or has failed."""
        ...

    def take(self, bank: str, answer: Answer | Contribution, body: memoryview) -> bool:
        """A bank's answer; False for one to an earlier exchange, which came twice. One that is refused raises and changes nothing, unless
        the session is over then."""
        ...

    def close(self) -> dict[str, bytes]:
        """End the exchange with the answers there are; what to send in the next, to whom."""
        ...

    def total(self) -> npt.NDArray[np.float32]:
        """The sum of the vectors."""
        ...


class Masked:
    exchanges: tuple[str, ...] = ("keys", "shares", "update", "view", "reveal", "receipt")

    def __init__(self, invitation: Invitation, roster: Roster, layout: Layout) -> None:
        """Refused for what secure aggregation cannot keep with this roster."""
        self.banks: tuple[str, ...] = ()
        self._invitation, self._server = invitation, Server(invitation.header(roster, layout), roster.for_sums)
        self._letters: list[Letter] = []

    @property
    def over(self) -> bool:
        return self._server.over

    def take(self, bank: str, answer: Answer | Contribution, body: memoryview) -> bool:
        message = Message.from_bytes(body)
        if not isinstance(message, Signed) or message.bank != bank:
            raise ProtocolError(f"a message that {bank} has not signed")
        if message.exchange < self._server.exchange:
            return False
        self._letters = self._server.on(message)
        return True

    def close(self) -> dict[str, bytes]:
        sent = self._letters or self._server.close_exchange()  # the last answer of a whole roster has closed it
        self._letters = []
        if self._server.exchange == MaskedVector.exchange + 1:
            self.banks = tuple(letter.bank for letter in sent)
        following = letters.Next(invitation=self._invitation.digest)
        sealed = {id(letter.message): letters.seal(following, *letter.message.pieces()) for letter in sent}
        return {letter.bank: sealed[id(letter.message)] for letter in sent}

    def total(self) -> npt.NDArray[np.float32]:
        return self._server.total()


class Open:
    exchanges: tuple[str, ...] = ("update",)

    def __init__(self, invitation: Invitation, roster: Roster, layout: Layout) -> None:
        self.banks: tuple[str, ...] = ()
        self.over = False
        self._roster, self._least = roster, invitation.training.threshold
        self._sum = np.zeros(invitation.length(layout))

    def take(self, bank: str, answer: Answer | Contribution, body: memoryview) -> bool:
        if len(body) != 4 * len(self._sum):
            raise ProtocolError(f"a vector of {len(body)} bytes, expected {4 * len(self._sum)}")
        vector = np.frombuffer(body, "<f4")
        if not np.isfinite(vector).all():
            raise ProtocolError("a vector with NaN or infinity in it")
        self._sum += vector
        self.banks = tuple(name for name in self._roster.names if name in (*self.banks, bank))
        return True

    def close(self) -> dict[str, bytes]:
        self.over = True
        if len(self.banks) < self._least:
            raise Aborted(f"{len(self.banks)} banks are left, {self._least} are needed", "start another attempt when more are there")
        return {}

    def total(self) -> npt.NDArray[np.float32]:
        return self._sum.astype(np.float32)
