"""Train, evaluate, predict, check: what the command line calls and a notebook can call."""
