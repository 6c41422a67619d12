"""Measurements of speed: ``python -m tools.bench.float_fast``."""
