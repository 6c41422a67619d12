"""Bytes in and out: ranges of local and remote files, and every call that changes a file system."""
