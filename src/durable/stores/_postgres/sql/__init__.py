"""The SQL of the store: its files, their loader, and the names of its tables."""
