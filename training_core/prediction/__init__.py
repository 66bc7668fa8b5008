"""Answers to files of cases of any size, one line for each line, resumable."""
