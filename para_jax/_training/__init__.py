"""Compression within a training loop: factors and optimizer state together."""
