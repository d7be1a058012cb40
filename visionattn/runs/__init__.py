"""A run on disk: its folder, its checkpoints, and the model in it."""
