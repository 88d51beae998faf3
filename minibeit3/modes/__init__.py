"""Downstream modes: one backbone, five ways to use it, each a backbone and a head."""

from minibeit3.modes.cloze import CaptionScorer, ClozeAnswerer, ClozeReasoner
from minibeit3.modes.detection import ObjectDetector
from minibeit3.modes.dual import ImageTextRetriever
from minibeit3.modes.fusion import VisualQuestionAnswerer, VisualReasoner
from minibeit3.modes.language import TextClassifier, TokenTagger
from minibeit3.modes.seq2seq import ImageCaptioner, hide_words
from minibeit3.modes.vision import ImageClassifier, SemanticSegmenter

__all__ = [
    "CaptionScorer",
    "ClozeAnswerer",
    "ClozeReasoner",
    "ImageCaptioner",
    "ImageClassifier",
    "ImageTextRetriever",
    "ObjectDetector",
    "SemanticSegmenter",
    "TextClassifier",
    "TokenTagger",
    "VisualQuestionAnswerer",
    "VisualReasoner",
    "hide_words",
]
