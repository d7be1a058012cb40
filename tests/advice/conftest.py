"""A run that some commands look at."""

from tests.cli.conftest import trained

__all__ = ["trained"]
