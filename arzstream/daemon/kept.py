"""What was last read of objects, for the next look at it: bounded for all of them together, however many there are."""

from __future__ import annotations

import collections
import threading
from collections.abc import Hashable

__all__ = ["Kept"]


class Kept:
    """Blocks of objects. Those go that were not used for the longest time. Thread-safe."""

    def __init__(self, most_bytes: int, most_of_one: int) -> None:
        """At most ``most_bytes`` in all, and ``most_of_one`` blocks of one object, so that reading through a large one
        leaves something of the others."""
        self._most, self._most_of_one = most_bytes, most_of_one
        self._lock = threading.Lock()
        self._blocks: collections.OrderedDict[tuple[Hashable, int], bytes] = collections.OrderedDict()
        self._numbers: dict[Hashable, dict[int, None]] = {}
        """Of each object's blocks, what was used last at the end."""
        self.nbytes = 0

    def take(self, owner: Hashable, number: int) -> bytes | None:
        """Block ``number`` of an object, if it is kept."""
        with self._lock:
            block = self._blocks.get((owner, number))
            if block is not None:
                self._blocks.move_to_end((owner, number))
                own = self._numbers[owner]
                own[number] = own.pop(number)
            return block

    def put(self, owner: Hashable, number: int, block: bytes) -> None:
        """Keep it, as what was used last."""
        with self._lock:
            self._drop(owner, number)
            self._blocks[owner, number] = block
            own = self._numbers.setdefault(owner, {})
            own[number] = None
            self.nbytes += len(block)
            if len(own) > self._most_of_one:
                self._drop(owner, next(iter(own)))
            while self.nbytes > self._most and len(self._blocks) > 1:
                self._drop(*next(iter(self._blocks)))

    def forget(self, owner: Hashable) -> None:
        """Let go of all blocks of an object."""
        with self._lock:
            for number in list(self._numbers.get(owner, ())):
                self._drop(owner, number)

    def _drop(self, owner: Hashable, number: int) -> None:
        block = self._blocks.pop((owner, number), None)
        if block is None:
            return
        self.nbytes -= len(block)
        own = self._numbers[owner]
        del own[number]
        if not own:
            del self._numbers[owner]
