"""The libraries that write checkpoints, run for real and made slow, to see whether the daemon understands them.

``context`` is what a writer tells about its saves, ``single`` and ``ranks`` are the writers, ``host`` runs many of one
kind. ``tools.measure.completeness`` starts them and counts. ``tools/writers/install`` installs what they need.
"""
