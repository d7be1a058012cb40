"""Explain the output of a network: its attention, class activation maps, relevance, and how well a map tells what mattered."""
