"""Many adapters compressed by one recipe, on one machine or a Ray cluster."""
