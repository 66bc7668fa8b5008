"""Rows that share a policy are computed together; what makes a batch and a step."""
