"""Codecs: one module each, a registry by number, and the choice of the best one for a chunk."""
