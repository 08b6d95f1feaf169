"""The data sets, and their batches."""
