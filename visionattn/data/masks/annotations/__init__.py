"""Annotations of segmentation tools, drawn as masks."""
