"""The paper: decompose, select, repack, and the account of what was kept."""
