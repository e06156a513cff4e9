"""What is watched: rules for Prometheus, dashboards for Grafana, and a page for whoever has no Grafana."""
