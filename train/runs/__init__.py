"""Training runs: settings, the loop over members, their folder, and results."""
