"""Envoy in front of two or more Tritons. Run it as `python -m deploy gateway`."""
