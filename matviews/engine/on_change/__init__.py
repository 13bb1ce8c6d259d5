"""Refreshes on change: which are due, and in which order."""
