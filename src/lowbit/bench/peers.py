"""All peers by name."""

from __future__ import annotations

from collections.abc import Sequence

from lowbit.bench import lowbit_peers, onnx_peers, openvino_peers, torch_peers, weight_peers
from lowbit.bench.peer import Peer
from lowbit.errors import BenchError

PEERS = (
    *torch_peers.PEERS,
    *onnx_peers.PEERS,
    *openvino_peers.PEERS,
    *weight_peers.PEERS,
    *lowbit_peers.PEERS,
)
REFERENCE = PEERS[0]  # fp32 in eager torch: what ratios and cosines refer to


def choose(names: Sequence[str] | None) -> list[Peer]:
    """Peers by name or by family, as in ``openvino``, in the order of the list; the reference is always among them.

    None is all. An unknown name raises :class:`BenchError`.
    """
    if names is None:
        return list(PEERS)
    known = {peer.name for peer in PEERS} | {peer.family for peer in PEERS}
    for name in names:
        if name not in known:
            raise BenchError(f"no peer {name!r}; choose among {', '.join(peer.name for peer in PEERS)}")
    return [peer for peer in PEERS if peer is REFERENCE or peer.name in names or peer.family in names]
