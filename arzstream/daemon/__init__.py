"""The daemon: checkpoints become verified archives while they land, whatever happens in between."""
