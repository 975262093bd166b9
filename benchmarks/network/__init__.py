"""A network on one machine: a namespace per machine, and a switch in user space that delays, limits, loses and cuts.

Real programs speak real TCP over it. For benchmarks and tests on machines whose kernel has no netem; needs root.
"""

from benchmarks.network.network import Network, NetworkError, why_not
from benchmarks.network.switch_core import Traffic
from benchmarks.network.topology import Line, Link, Topology, regions

__all__ = ["Line", "Link", "Network", "NetworkError", "Topology", "Traffic", "regions", "why_not"]
