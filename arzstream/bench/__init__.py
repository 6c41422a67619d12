"""Measuring ratio and speed on a user's own files, beside memcpy and every comparable program that is installed.

A :mod:`~arzstream.bench.sample` is cut once and given to every contender. :mod:`~arzstream.bench.rounds` lets each of
them code and decode it in turn, compares every byte that comes back, and reports medians.
"""
