"""A line of a file becomes a record, or a reason why not."""
