"""Sonde from Python: captured activations, live from the bus and exact from the dataset.

`subscribe` iterates over what an engine computes now; `open_lake` reads what was stored. Both give vectors bit for
bit: floats are widened by moving bits, and a row that is missing is a `Gap` or an error, never zeros.
"""

from sonde.chain import Gap
from sonde.errors import (
    AmbiguousRequest,
    DamagedMessage,
    IncompleteTensor,
    LakeError,
    NotInLake,
    SondeError,
)
from sonde.lake import Lake, Tensor, open_lake
from sonde.live import Subscription, subscribe
from sonde.message import Batch

__all__ = [
    "AmbiguousRequest",
    "Batch",
    "DamagedMessage",
    "Gap",
    "IncompleteTensor",
    "Lake",
    "LakeError",
    "NotInLake",
    "SondeError",
    "Subscription",
    "Tensor",
    "open_lake",
    "subscribe",
]
