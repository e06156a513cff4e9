"""What a click log holds, as a table and as a page with pictures."""
