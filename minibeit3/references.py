"""Lines beside a model's figures that need no model: what words, pictures or counts give away."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def words_only(train: Sequence[str], answers: Sequence[str], test: Sequence[str]) -> list[str]:
    """Answers of a logistic regression on 1- to 3-grams of the texts (scikit-learn).

    ImportError that names the fix when scikit-learn is missing.
    """
    try:
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
    except ImportError as error:
        raise ImportError("reference lines need scikit-learn: pip install scikit-learn") from error
    model = make_pipeline(
        CountVectorizer(ngram_range=(1, 3), binary=True, token_pattern=r"\w+"),
        LogisticRegression(max_iter=400),
    )
    return [str(answer) for answer in model.fit(list(train), list(answers)).predict(list(test))]


def majority(train: Sequence[str], answers: Sequence[str], test: Sequence[str]) -> list[str]:
    """The most frequent answer of each kind of the training data, for the kinds of the test."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for kind, answer in zip(train, answers, strict=True):
        counts[kind][answer] += 1
    overall = sum(counts.values(), Counter())
    return [(counts[kind] or overall).most_common(1)[0][0] for kind in test]


def nearest_picture(known: Sequence[Tensor], asked: Sequence[Tensor], size: int = 16) -> list[int]:
    """For each asked picture, the place of the known one that is nearest in shrunk pixels.

    known, asked: uint8 (3, H, W). Distance: euclidean of size x size pixels.
    """

    def shrunk(pictures: Sequence[Tensor]) -> Tensor:
        parts = [F.adaptive_avg_pool2d(picture.float(), size) for picture in pictures]
        return torch.stack(parts).flatten(1)

    return torch.cdist(shrunk(asked), shrunk(known)).argmin(dim=1).tolist()
