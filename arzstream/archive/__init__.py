"""Archives as a whole: writing, lazy reading, restoring, verifying, recovering."""
