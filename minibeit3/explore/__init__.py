"""Explorers: pure pictures (core and its neighbours), and thin shells around them."""

from minibeit3.explore.ablation import AblationExplorer
from minibeit3.explore.answering import AnswerExplorer
from minibeit3.explore.attention import AttentionExplorer
from minibeit3.explore.captioning import CaptionExplorer
from minibeit3.explore.codebook import CodebookExplorer
from minibeit3.explore.masks import MaskExplorer
from minibeit3.explore.retrieval import RetrievalExplorer
from minibeit3.explore.routing import RoutingExplorer

__all__ = [
    "AblationExplorer",
    "AnswerExplorer",
    "AttentionExplorer",
    "CaptionExplorer",
    "CodebookExplorer",
    "MaskExplorer",
    "RetrievalExplorer",
    "RoutingExplorer",
]
