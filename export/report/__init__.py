"""What the gates found: a table on the screen and a page with pictures."""
