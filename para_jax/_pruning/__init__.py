"""The paper: decompose, select, repack, and the report of the compression."""
