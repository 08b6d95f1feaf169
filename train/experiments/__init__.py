"""What the experiments found: rows of results, and the tables and figures of them."""
