"""Accuracies and scores of many adapters on one base: one evaluator, three counters."""
