"""What is made of several runs, or before one: averages, ensembles, masked words, a search."""
