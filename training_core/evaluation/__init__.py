"""Models answer the held-out rows; the answers are scored and compared."""
