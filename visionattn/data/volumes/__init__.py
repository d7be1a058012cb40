"""Volumes: NIfTI and DICOM files, their label maps, and what a network takes of them."""
