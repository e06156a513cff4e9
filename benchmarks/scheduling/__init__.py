"""How a server treats small requests beside large ones, more load than it can take, and calls that are given up."""
