"""Manifests for Kubernetes (kustomize). README.md says how they are used."""
