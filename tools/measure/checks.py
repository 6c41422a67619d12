"""A list of claims that are printed as they are checked."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class Checks:
    """Counts what held and what did not."""

    held: int = 0
    failed: int = 0

    def __call__(self, good: bool, text: str) -> bool:
        print(f"  {'ok    ' if good else 'FAILED'}  {text}", flush=True)
        if good:
            self.held += 1
        else:
            self.failed += 1
        return good

    def status(self) -> int:
        """Print the total; the exit status."""
        print(f"{self.held} of {self.held + self.failed} hold", flush=True)
        return 1 if self.failed or not self.held else 0
