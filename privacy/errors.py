"""What can go wrong with a promise, and the base of every error that a person is meant to read.

    ConsortiumError                    exit code 1
    └── PrivacyError
        ├── PlanError(ValueError)          2   a plan that promises nothing, or cannot be kept
        ├── AuditError(ValueError)         2   scores or canaries that no audit can be made of
        ├── LedgerError(ValueError)        2   a ledger that is not there, or an order to it that makes no sense
        ├── LedgerCorrupt(RuntimeError)    1   rows of a ledger have been changed
        ├── BudgetRefused(RuntimeError)    3   a population's budget does not allow what was asked
        ├── PromiseBroken(RuntimeError)    1   a run did not do what its statement would say
        └── SecAggError(RuntimeError)      1   a session of secure aggregation did not go as it should
            ├── ProtocolError                  a message that is malformed, misplaced or not from whom it says: drop it
            ├── Misbehaviour                   a bank signed what no honest bank signs: leave it out
            ├── Inconsistent                   banks were not all shown the same: compare transcripts
            ├── Refused                    3   the bank's own rules forbid what the session asks
            ├── Aborted                        too few banks are left: another session, with fresh updates
            └── VaultError                     a bank's secrets on disk are in use, damaged or of another bank

Every class is also the standard library's nearest type, can be pickled and has a hint: what to do. None is retried: the same would
happen again, and after PromiseBroken nobody knows what was released.
"""

from typing import Self


class ConsortiumError(Exception):
    """A one-line message and a hint for the person who reads it."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class PrivacyError(ConsortiumError):
    """The base of what follows."""


class PlanError(PrivacyError, ValueError):
    """A plan that promises nothing, or cannot be kept."""

    exit_code = 2


class AuditError(PrivacyError, ValueError):
    """Scores or canaries that no audit can be made of."""

    exit_code = 2


class LedgerError(PrivacyError, ValueError):
    """A ledger that is not there, or an order to it that makes no sense."""

    exit_code = 2


class LedgerCorrupt(PrivacyError, RuntimeError):
    """Rows of a ledger have been changed: it proves nothing any more."""


class BudgetRefused(PrivacyError, RuntimeError):
    """A population's budget does not allow what was asked. No row has reached a model."""

    exit_code = 3


class PromiseBroken(PrivacyError, RuntimeError):
    """A run did not do what its statement would say; none is written."""


class SecAggError(PrivacyError, RuntimeError):
    """A session of secure aggregation did not go as it should. Whoever raises it has given nothing away and is where it was before."""

    def __init__(self, message: str, hint: str = "", banks: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint)
        self.args = (message, hint, banks)
        self.banks = banks
        """Whom it is about, where that is known"""

    def at(self, place: str) -> Self:
        """The same, saying where: bank, session and exchange."""
        return type(self)(f"{place}: {self.message}", self.hint, self.banks)


class ProtocolError(SecAggError):
    """A message that is malformed, misplaced or not from whom it says. Anybody on the way may have made it: drop it."""


class Misbehaviour(SecAggError):
    """A bank signed what no honest bank signs. `banks` names it; leave it out of the next session."""


class Inconsistent(SecAggError):
    """Banks were not all shown the same, or one of them says so: compare transcripts. `banks` are those that signed otherwise."""


class Refused(SecAggError):
    """The bank's own rules forbid what the session asks."""

    exit_code = 3


class Aborted(SecAggError):
    """Too few banks are left. What they have sent stays masked; another session needs fresh updates."""


class VaultError(SecAggError):
    """A bank's secrets on disk are in use by another process, damaged or of another bank."""
