"""Parts of `benchmarks/images.py`: models, cases, engines, measurement, and the processes that run the engines."""
