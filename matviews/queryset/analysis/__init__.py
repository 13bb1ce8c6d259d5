"""What a view's query is: its columns, its key, its tables, and what each row depends on."""
