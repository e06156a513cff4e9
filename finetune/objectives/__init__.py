"""What is minimised: clicks by row, by pair or by list, and the understanding of texts beside them."""
