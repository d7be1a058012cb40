"""Bags of instances: feature files and folders of patches, their labels and splits."""
