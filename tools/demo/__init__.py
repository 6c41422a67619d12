"""The demonstration that ``./tools/start`` runs."""
