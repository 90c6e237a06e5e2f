"""Word that a machine is about to be taken away, asked for every few seconds by all workers together."""

import time
from collections.abc import Callable

from trainers.world import World

_EVERY_SECONDS = 5.0


class Notice:
    """`leaving` says whether this worker's machine is about to go. It may be a collective call: all workers make it at the same steps."""

    def __init__(self, leaving: Callable[[], bool], world: World) -> None:
        self._leaving, self._world = leaving, world
        self._next, self._heard = time.monotonic(), False

    @property
    def is_due(self) -> bool:
        return not self._heard and time.monotonic() >= self._next

    def heard(self) -> bool:
        """Whether any worker's machine is leaving, as all learn now; true once, and not asked again. All workers call it."""
        self._next = time.monotonic() + _EVERY_SECONDS
        self._heard = self._world.sum(float(self._leaving()))[0] > 0
        return self._heard
