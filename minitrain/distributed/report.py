"""An error that all processes meet is reported by one of them."""

import hashlib
import time

from torch.distributed.rendezvous import rendezvous

from minitrain.distributed.launch import Launch
from minitrain.system.errors import GroupError, MinitrainError


def claim_report(error: MinitrainError, launch: Launch) -> bool:
    """Claim the report of an error; return False if another process has claimed it."""
    if launch.world_size == 1:
        return True
    if launch.rank:
        time.sleep(1)  # rank 0 knows best what is safe, as long as it lives
    text = "lost" if isinstance(error, GroupError) else str(error)
    digest = hashlib.sha256(text.encode()).hexdigest()
    try:
        store, _, _ = next(iter(rendezvous("env://")))
        return store.add(f"told {digest}, start {launch.num_restarts}", 1) == 1
    except (RuntimeError, ValueError):  # there is no store any more: better twice
        return True
