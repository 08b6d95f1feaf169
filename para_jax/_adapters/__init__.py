"""Adapters, stacks of them, and checkpoints: the data of every other folder."""
