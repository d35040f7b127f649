"""Metrics: scores of one image for its sample, distances between sets of images, and how to read them."""
