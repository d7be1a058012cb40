"""Heads take the list of maps and return logits."""

from visionattn.heads.linear import LinearHead

__all__ = ["LinearHead"]
