"""What a benchmark finds: its schema, statistics, environment, and comparisons."""
