"""How a view can be refreshed, and why: windowed or staged, incrementally or only in full."""
