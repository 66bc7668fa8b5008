"""A line of a file becomes a record, or is rejected with a reason."""
