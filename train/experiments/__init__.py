"""Results of the experiments: rows, and tables and figures of them."""
