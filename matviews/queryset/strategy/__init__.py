"""How a view can be refreshed, and why: in windows or staged, by keys or in full."""
