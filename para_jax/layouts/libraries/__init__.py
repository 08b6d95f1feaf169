"""Define one layout per library: the place of an adapter's factors in its trees."""
