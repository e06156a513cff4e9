"""INT8: calibration, what fits a layer, the INT8 graphs."""
