"""A call without I/O: its arguments, its steps, and what to make of the answers."""
