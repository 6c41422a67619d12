"""``python -m arzstream`` is the command ``arzstream``."""

from __future__ import annotations

import sys

from arzstream.cli import main

if __name__ == "__main__":
    sys.exit(main())
