"""Changes on their way from the log to dirty keys."""
