"""Several processes of one launch (`accelerate launch`, torchrun): one does everything, the others wait and train along.

Does: tell the leading process from the rest by the launcher's environment, hand the training over to them.
Does not: start processes, or train. Without a launcher it does nothing and torch is not imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

PATIENCE = timedelta(days=30)
"""How long the others wait: asking a teacher can take days."""

Order = dict[str, Any]


class Team:
    """The processes of this launch. The leader calls `start` before it trains; the others get its order from `wait`."""

    def __init__(self, rank: int, count: int, group: Any = None) -> None:
        self.rank, self.count, self._group = rank, count, group
        self._sent = False

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def start(self, order: Order) -> None:
        """Call the others to the training that `order` (JSON values) describes."""
        self._send(order)

    def wait(self) -> Order | None:
        """The leader's order, or None when it ended without training."""
        return self._exchange(None)

    def close(self) -> None:
        """Let the others go when no training was started, and leave the group."""
        if self._group is None:
            return
        from torch.distributed import destroy_process_group

        if self.leads and not self._sent:
            self._send(None)
        destroy_process_group()
        self._group = None

    def _send(self, order: Order | None) -> None:
        if self._group is not None and not self._sent:
            self._sent = True
            self._exchange(order)

    def _exchange(self, order: Order | None) -> Order | None:
        from torch.distributed import broadcast_object_list

        box: list[Any] = [order]
        broadcast_object_list(box, src=0, group=self._group)
        received: Order | None = box[0]
        return received


@contextmanager
def team() -> Iterator[Team]:
    """The processes this one was launched with; alone, a team of one."""
    rank, count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Team(0, 1)
        return
    import torch
    from accelerate import PartialState
    from torch.distributed import new_group

    # The trainer takes this state over; the group of its own waits on the CPU, not in a GPU kernel.
    PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    made = Team(rank, count, new_group(backend="gloo", timeout=PATIENCE))
    try:
        yield made
    finally:
        made.close()
