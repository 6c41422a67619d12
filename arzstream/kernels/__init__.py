"""Loops that decide nothing: C++ where it could be built, and the NumPy reference that writes the same bytes."""
