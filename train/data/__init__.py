"""The tasks, and how their sentences become batches."""
