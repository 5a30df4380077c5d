"""The HTTP APIs of relationship databases: one file of pure functions for each."""
