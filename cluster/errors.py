"""What can go wrong between the command and the workers.

ClusterError                       exit code 1
├── ClusterTooSmall(ValueError)        2   the cluster can never provide the workers asked for
├── ClusterUnreachable(ConnectionError) 2  no cluster at the address, or no access to it
├── PackageTooLarge(ValueError)        2   more data than may travel with a job
├── JobNotFound(LookupError)           2   no job of this id on the cluster
├── JobMismatch(ValueError)            2   a job's name is another's, or what is asked does not fit its state
└── WorkersFailed(RuntimeError)        1   the workers kept failing
"""

from trainers.errors import TrainersError


class ClusterError(TrainersError):
    """The base: a one-line message and a hint."""


class ClusterTooSmall(ClusterError, ValueError):
    """The cluster can never provide the workers asked for."""

    exit_code = 2


class ClusterUnreachable(ClusterError, ConnectionError):
    """No cluster at the address, or no access to it."""

    exit_code = 2


class PackageTooLarge(ClusterError, ValueError):
    """More data than may travel with a job."""

    exit_code = 2


class JobNotFound(ClusterError, LookupError):
    """No job of this id on the cluster."""

    exit_code = 2


class JobMismatch(ClusterError, ValueError):
    """The name of a job belongs to another, or what is asked of a job does not fit its state."""

    exit_code = 2


class WorkersFailed(ClusterError, RuntimeError):
    """The workers failed more often than the job allows."""
