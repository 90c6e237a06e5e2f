"""What a bank can tell by itself of the adapter that a round starts from: what each sum it was sent made of the one before.

RUN/R.A    what round R starts from, by the sum of attempt A at the round before
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from federation.files import translated
from federation.rounds.aggregate import Layout, State, Vector
from federation.rounds.letters import Invitation
from privacy import disk
from privacy.secagg.codec import decode, encode


@dataclass(frozen=True)
class Start:
    """An adapter in safetensors, and the server's momentum in float32."""

    adapter: memoryview
    velocity: memoryview


class Starts:
    """What is kept in a folder. Raises FolderError where that cannot be made."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with translated(folder):
            folder.mkdir(mode=0o700, exist_ok=True)

    def of(self, invitation: Invitation) -> Start | None:
        """What the sum that the invitation names made; None where this bank was not sent it."""
        path = self._folder / invitation.run / f"{invitation.round}.{invitation.before}"
        if not path.exists():
            return None
        start = decode(path.read_bytes(), Start)
        assert isinstance(start, Start)
        return start

    def velocity(self, invitation: Invitation, layout: Layout) -> Vector | None:
        """The server's momentum before this round; None where the bank cannot know it."""
        aggregation = invitation.training.aggregation
        if invitation.round == 1 or not aggregation.momentum:
            return np.zeros(layout.length, np.float32)
        if (start := self.of(invitation)) is None or aggregation.method == "fedsvd":  # whose basis is the coordinator's
            return None
        return np.frombuffer(start.velocity, np.float32)

    def keep(self, invitation: Invitation, state: State) -> None:
        """What the sum of this attempt made, until two rounds on."""
        folder = self._folder / invitation.run
        folder.mkdir(mode=0o700, exist_ok=True)
        start = Start(memoryview(save(dict(state.adapter))), state.velocity.data.cast("B"))
        disk.write(folder / f"{invitation.round + 1}.{invitation.attempt}", encode(start, Start))
        for path in folder.iterdir():
            if int(path.name.split(".")[0]) < invitation.round:
                path.unlink()

    def compared(self, invitation: Invitation) -> str:
        """Whether the invitation's adapter can be held against a sum, for the record."""
        aggregation, folder = invitation.training.aggregation, self._folder / invitation.run
        if invitation.round == 1:
            return "no: nothing was summed yet"
        if self.of(invitation) is not None:
            return "with the last sum"
        if seen := sorted(path.name.split(".")[1] for path in folder.glob(f"{invitation.round}.*")):
            return f"no: this bank has the sum of attempt {', '.join(seen)}, and was told that attempt {invitation.before} counts"
        if aggregation.method == "fedsvd" and aggregation.momentum and invitation.round > 2:
            return "no: with fedsvd the momentum is in a basis that only the coordinator knows"
        return "no: this bank has not seen the sum before"
