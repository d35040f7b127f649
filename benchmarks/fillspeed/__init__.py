"""Parts of `benchmarks/fill.py`: cases, engines, measurement, and the processes that run the engines."""
