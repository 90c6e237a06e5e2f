"""What is installed: of every run's record. Imports nothing of it."""

import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of those that are there, and of Python."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found | {"python": ".".join(map(str, sys.version_info[:3]))}
