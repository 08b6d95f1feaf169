"""The paper's own comparisons, one a file."""
