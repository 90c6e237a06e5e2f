"""What can go wrong in a training process.

    TrainersError                 exit code 1
    ├── ConfigError(ValueError)       2   the job file
    ├── DataError(ValueError)         2   rows, columns, labels
    ├── ModelError(ValueError)        2   weights, tokenizer, adapter targets
    ├── RunBusyError(RuntimeError)    2   another live run holds the run directory
    ├── Interrupted(RuntimeError)      130 Ctrl-C
    ├── NonFiniteLoss(ArithmeticError) 1  NaN or infinite loss, with the samples it came from
    └── CheckpointError(OSError)      1   a checkpoint could not be written or read

Every class is also the standard library's nearest type, can be pickled (Ray carries it between processes) and has a hint: what to do.
These are final: a run that ends with one is not retried, because the same input would end it again. Anything else is taken for a fault
of the machine.
"""

from privacy.errors import ConsortiumError


class TrainersError(ConsortiumError):
    """The base of what follows."""


class ConfigError(TrainersError, ValueError):
    """The job file asks for something that cannot be."""

    exit_code = 2


class DataError(TrainersError, ValueError):
    """A row, a column or a label is not what the task needs."""

    exit_code = 2


class ModelError(TrainersError, ValueError):
    """The model, its tokenizer or its adapter targets do not fit."""

    exit_code = 2


class RunBusyError(TrainersError, RuntimeError):
    """Another live process holds the run directory."""

    exit_code = 2


class Interrupted(TrainersError, RuntimeError):
    """The user ended a run; it can be continued."""

    exit_code = 130


class NonFiniteLoss(TrainersError, ArithmeticError):
    """The loss became NaN or infinite; the step was not applied."""


class CheckpointError(TrainersError, OSError):
    """A checkpoint could not be written or read; the ones before it are intact."""
