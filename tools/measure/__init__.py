"""Commands that print, and check, the figures the project states about itself: ``python -m tools.measure.NAME``."""
