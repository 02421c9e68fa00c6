"""A real PostgreSQL, started here."""
