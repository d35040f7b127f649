"""Ranks: topology, coordinator, collectives, sharding, work stealing and batching."""
