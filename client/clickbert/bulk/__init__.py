"""Whole logs at once: the rows of a file, their scores in another file, and how a job that was broken off goes on."""
