"""One layout a library: where its trees keep the factors of an adapter."""
