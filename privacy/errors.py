"""What can go wrong with a promise, and the base of every error that a person is meant to read.

    ConsortiumError                    exit code 1
    └── PrivacyError
        ├── PlanError(ValueError)          2   a plan that promises nothing, or cannot be kept
        ├── AuditError(ValueError)         2   scores or canaries that no audit can be made of
        ├── LedgerError(ValueError)        2   a ledger that is not there, or an order to it that makes no sense
        ├── LedgerCorrupt(RuntimeError)    1   rows of a ledger have been changed
        ├── BudgetRefused(RuntimeError)    3   a population's budget does not allow what was asked
        └── PromiseBroken(RuntimeError)    1   a run did not do what its statement would say

Every class is also the standard library's nearest type, can be pickled and has a hint: what to do. None is retried: the same would
happen again, and after PromiseBroken nobody knows what was released.
"""


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
