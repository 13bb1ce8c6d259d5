"""Which views read which, and what follows from it."""
