"""Train and evaluate any task."""
