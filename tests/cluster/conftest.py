"""The cluster that all tests of this folder share, module by module: what one leaves of it another does not meet."""

from collections.abc import Iterator

import pytest

from tests.cluster.raylets import Raylets, two_raylets


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Raylets]:
    """Two raylets of one CPU each, a token and a dashboard."""
    with two_raylets(tmp_path_factory.mktemp("home")) as running:
        yield running
