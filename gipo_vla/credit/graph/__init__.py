"""GraphGPO: the credit, its graph of states, the keys that merge states, and a picture of it."""

from gipo_vla.credit.graph.credit import GraphCredit, GraphSettings, group_graph

__all__ = ["GraphCredit", "GraphSettings", "group_graph"]
