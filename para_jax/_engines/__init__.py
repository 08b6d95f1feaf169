"""The programs that serve adapters: what each reads, and adapters made ready for it."""
