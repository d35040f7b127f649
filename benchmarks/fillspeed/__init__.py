"""What `benchmarks/fill.py` is made of: cases, engines to compare, how they are measured, and who starts them."""
