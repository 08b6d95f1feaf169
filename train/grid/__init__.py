"""All runs behind the tables and figures: what they are, and how they are made."""
