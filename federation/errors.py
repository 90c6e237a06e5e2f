"""What can go wrong between banks and their coordinator.

FederationError                    exit code 1
├── FactsError(ValueError)             2   a file, a name or what was typed is not what it should be
├── FolderError(OSError)               2   keys and rosters cannot be read or written, or are there already
├── NotTrusted(RuntimeError)           3   what is asked goes against what this side has confirmed or signed
│   └── Fork                               two rosters under one version: somebody shows banks different ones
├── CertificateError(ValueError)       1   a TLS certificate that does not hold: its time, its name, its key or who issued it
├── AdapterError(ValueError)           2   adapters that do not fit one another, or cannot be added
├── JournalError(RuntimeError)         1   a journal or record is damaged, in use, or asked to do what was done otherwise
└── TrainingFailed(RuntimeError)       1   a bank's training job has ended, or answered a round with an error
"""

from privacy.errors import ConsortiumError


class FederationError(ConsortiumError):
    """The base of what follows."""


class FactsError(FederationError, ValueError):
    """A file, a name or what was typed is not what it should be."""

    exit_code = 2


class FolderError(FederationError, OSError):
    """Keys and rosters cannot be read or written, or are there already."""

    exit_code = 2


class NotTrusted(FederationError, RuntimeError):
    """What is asked goes against what this side has confirmed or signed. Nothing was signed or issued."""

    exit_code = 3


class Fork(NotTrusted):
    """Two rosters under one version: somebody shows banks different ones."""


class CertificateError(FederationError, ValueError):
    """A TLS certificate that does not hold: its time, its name, its key or who issued it."""


class AdapterError(FederationError, ValueError):
    """Adapters that do not fit one another, or cannot be added."""

    exit_code = 2


class JournalError(FederationError, RuntimeError):
    """A journal or record is damaged, in use, or asked to do what was done otherwise. It is as it was."""


class TrainingFailed(FederationError, RuntimeError):
    """A bank's training job has ended, or answered a round with an error. No update has left the bank.

    The message may be told to the coordinator. What the job said, which may name files and rows, is in the hint.
    """
