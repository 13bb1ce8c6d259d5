"""How views stand, for people and for monitoring."""
