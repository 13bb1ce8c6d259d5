"""What runs next: after a batch, after a wait, after a lost message."""
