"""Processes that need not import torch, transformers and DeepSpeed anew, which takes seconds: they are forked from one that has.

For what a process does, not for how it comes up: a test of its start or its imports starts one by itself.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

_MODULES = ["torch.distributed", "transformers", "peft", "datasets", "trainers.worker", "trainers.rounds"]


def context() -> ForkServerContext:
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(_MODULES)
    return found


class Running:
    """`python -m MODULE ARGUMENTS`, whose output goes to files."""

    def __init__(self, module: str, arguments: Sequence[object], environment: Mapping[str, str], stdin: str = "") -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._arguments = [*map(str, arguments)]
        place = Path(self._folder.name)
        for name, content in (("stdin", stdin), ("stdout", ""), ("stderr", "")):
            (place / name).write_text(content)
        self._process: BaseProcess = context().Process(target=_run, args=(module, self._arguments, {**os.environ, **environment}, place))
        self._process.start()

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> subprocess.CompletedProcess[str]:
        """With SIGKILL; what it said until then."""
        self._process.kill()
        return self.finish()

    def finish(self, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """TimeoutError for one that takes so long; it is killed."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise TimeoutError(f"{self._arguments} took longer than {timeout} s")
        output, errors = ((Path(self._folder.name) / name).read_text() for name in ("stdout", "stderr"))
        self._folder.cleanup()
        return subprocess.CompletedProcess(self._arguments, self._process.exitcode, output, errors)


def run(module: str, *arguments: object, environment: Mapping[str, str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    return Running(module, arguments, environment, stdin).finish()


def take_over(environment: Mapping[str, str]) -> None:
    """In a process that was forked: the environment of the one that asked for it, which the server it is from does not know."""
    os.environ.clear()
    os.environ.update(environment)


def _run(module: str, arguments: list[str], environment: dict[str, str], place: Path) -> None:
    take_over(environment)
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        file = os.open(place / name, os.O_RDONLY if name == "stdin" else os.O_WRONLY | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    sys.stdin = os.fdopen(0, closefd=False)  # multiprocessing has put another there
    sys.argv = [module, *arguments]
    code: object = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)
