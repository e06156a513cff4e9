"""What stands around the servers where callers are on a network."""
