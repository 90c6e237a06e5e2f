"""An end to waiting: a worker that makes no progress is taken for hung and ends itself, so that whoever started it can start it again.

A collective waits for a worker that has gone for as long as its backend likes, and nothing of Python can interrupt it.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: try again"""


@contextlib.contextmanager
def watching(alive_at: Callable[[], float], *, limit: float, report: Callable[[str], None]) -> Iterator[None]:
    """End this process when `alive_at` (a time.monotonic()) has not moved for `limit` seconds, after telling `report` why."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(min(limit / 4, 10.0)):
            silent = time.monotonic() - alive_at()
            if silent > limit:
                message = f"no progress for {silent:.0f} s: a worker is stuck or a collective hangs; this one ends to be started again"
                print(f"error: {message}", file=sys.stderr, flush=True)
                with contextlib.suppress(Exception):  # nothing may keep it from ending
                    report(message)
                os._exit(EXIT_CODE)

    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
