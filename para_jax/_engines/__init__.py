"""Serving engines: their requirements, and adapters prepared for them."""
