"""Failing views: their back-off, and the errors and definitions with which they failed."""
