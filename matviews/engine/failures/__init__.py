"""Failing views: their back-off, and what they failed with."""
