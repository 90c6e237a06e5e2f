"""What can go wrong between the command and the workers.

ClusterError                       exit code 1
├── ClusterTooSmall(ValueError)        2   the cluster can never provide the workers asked for
├── ClusterUnreachable(ConnectionError) 2  no cluster at the address, or no access to it
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


class WorkersFailed(ClusterError, RuntimeError):
    """The workers failed more often than the job allows."""
