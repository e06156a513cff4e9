"""How many replicas a load needs, and whether that is true."""
