"""What a result is worth: scores of one image against its sample, and how they are to be read."""
