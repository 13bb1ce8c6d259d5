"""What the databases share, and what each must say."""
