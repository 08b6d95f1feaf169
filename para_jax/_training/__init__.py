"""Compress adapters within a training loop, together with the optimizer's state."""
