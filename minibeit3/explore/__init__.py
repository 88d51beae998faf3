"""Explorers: pure pictures (core), and thin widgets around them (widgets)."""

from minibeit3.explore.routing import RoutingExplorer
from minibeit3.explore.widgets import AttentionExplorer, MaskExplorer

__all__ = ["AttentionExplorer", "MaskExplorer", "RoutingExplorer"]
