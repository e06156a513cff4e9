"""What goes over the wire: texts as tokens, tensors by name, gRPC, and what outputs mean."""
