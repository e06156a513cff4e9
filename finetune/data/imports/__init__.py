"""Other formats, read as the click log: MIND, Amazon ESCI, and tables with column names given."""
