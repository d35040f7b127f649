"""Gives a command of fluxexp to a cluster: a batch script for Slurm, or a manifest for Kubernetes (docs/nodes.md)."""
