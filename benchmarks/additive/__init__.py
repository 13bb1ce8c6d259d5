"""Additive views: a refresh that adds what has changed, beside those that read the groups."""
