"""Adapters, stacks of them, and checkpoints: the data that everything passes around."""
