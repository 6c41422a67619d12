"""The ARZ-1 container: prologue, frames, metadata, index, trailer. ``spec/ARZ-1.md`` is its text."""
