"""The states of views, their progress and age, for people and for monitoring."""
