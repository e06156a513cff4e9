"""The packed graph and its tools."""
