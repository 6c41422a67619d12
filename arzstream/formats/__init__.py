"""What lands: the structure of checkpoint files, found without executing or trusting anything in them.

A parser is given bytes by offset and says where elements of one dtype lie (``base``); ``detect`` picks the parser,
``order`` says which layer a tensor belongs to, ``checkpoint`` which files make one checkpoint and when it is
complete. A file that is malformed is never an error here: it is opaque bytes, with a note that says why.
"""
