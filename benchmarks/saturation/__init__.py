"""How a server is brought to saturation, and how its engine computes the same in process."""
