"""Archives in other people's libraries: one module for each, imported by whoever uses it.

No module of another library is changed. What a library does not offer a place for is not done.
"""
