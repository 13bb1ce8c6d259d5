"""Parked keys: finding the rows that fail, and leaving them out."""
