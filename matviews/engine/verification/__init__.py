"""Comparing views with their sources, at once or in the background."""
