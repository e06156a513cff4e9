"""The sample click log: its words, and how its rows are drawn."""
