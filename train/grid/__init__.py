"""All runs behind the tables and figures: their plans, and how they are made."""
