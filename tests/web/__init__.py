"""The pages, as they are asked for, and in a browser."""
