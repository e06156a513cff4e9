"""How rows are read and written: one file a format."""
