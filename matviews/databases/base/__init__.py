"""What the databases share, and what each implements."""
