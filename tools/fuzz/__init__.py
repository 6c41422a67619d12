"""Fuzzing of everything that reads what lands on a disk: ``python -m tools.fuzz --help``.

``seeds`` has small files from the real writers, ``mutations`` what is done to bytes, ``structures`` what is done to the
parts that a format is made of, ``targets`` which parser gets what, ``examine`` what must hold of any input,
``campaign`` is the loop.
"""
