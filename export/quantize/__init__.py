"""INT8: calibration, SmoothQuant, the INT8 graphs."""
