"""The benchmark of queryset views, beside what a database and an ORM offer for the same work."""
