"""The command line: each command parses, calls one job, prints."""

from visionattn.cli.main import app, main

__all__ = ["app", "main"]
