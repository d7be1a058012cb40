"""Every block of code of README.md and docs/, and the pages that are written by tools."""
