"""Other people's registries. Each module is imported on request only."""
