"""The path of a batch, and the work that it does."""
