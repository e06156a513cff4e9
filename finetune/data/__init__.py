"""The click log and the sample log."""
