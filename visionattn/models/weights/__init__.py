"""Checkpoint files: records of published weights, downloads, recognition by tensors, loading."""
