"""Ranks: who they are, how they meet, and how work is shared and batched among them."""
