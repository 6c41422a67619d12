"""What the project's own tests use, for those who test against it: model-like tensors, checkpoint writers of every
kind that is met in the field (also as a process: ``python -m arzstream.testing.writers --help``), awkward folders, and
a harness that starts, kills and inspects the daemon. Nothing here is imported by the rest of the package.
"""
