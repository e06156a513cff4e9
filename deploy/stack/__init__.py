"""Two Tritons, the gateway and Prometheus on one machine, without containers. Run it as `python -m deploy stack`."""
