"""Requests of refreshes, and the control rows that they need."""
