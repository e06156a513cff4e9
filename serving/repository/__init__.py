"""The model repository as a server sees it: what is served, whether it is whole, and another version loaded."""
