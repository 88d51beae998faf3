"""Explorers: pure pictures (core), and thin widgets around them (widgets)."""

from minibeit3.explore.attention import AttentionExplorer
from minibeit3.explore.codebook import CodebookExplorer
from minibeit3.explore.masks import MaskExplorer
from minibeit3.explore.routing import RoutingExplorer

__all__ = ["AttentionExplorer", "CodebookExplorer", "MaskExplorer", "RoutingExplorer"]
