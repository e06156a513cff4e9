"""TensorRT: typed graphs, plans, and the GPU that runs them."""
