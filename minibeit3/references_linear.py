"""Lines beside a fine-tuned encoder: one linear layer on features that it must beat.

Legend: n samples, m asked samples, F features.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minibeit3.teacher import load_lite0, resize

STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # inverse regularisation, the best on a fifth of the training
PIXELS = 16
LITE0_PIXELS = 128
_NEEDS = "reference lines need scikit-learn: pip install scikit-learn"


def linear(known: np.ndarray, labels: Sequence[int], asked: np.ndarray) -> list[int]:
    """Classes that a logistic regression gives to `asked` (m, F), fitted on `known` (n, F).

    Features are standardised; the regularisation is chosen on every fifth training sample.
    ImportError that names the fix when scikit-learn is missing.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise ImportError(_NEEDS) from error
    truth, fifth = np.asarray(labels), np.arange(len(labels)) % 5 == 0

    def fit(strength: float, rows: np.ndarray) -> Any:
        head = LogisticRegression(C=strength, max_iter=100, tol=1e-3)
        return make_pipeline(StandardScaler(), head).fit(known[rows], truth[rows])

    with warnings.catch_warnings():  # few samples of many classes, fits cut short: still a line
        warnings.simplefilter("ignore")
        tried = {s: fit(s, ~fifth).score(known[fifth], truth[fifth]) for s in STRENGTHS}
        best = fit(max(tried, key=lambda s: tried[s]), np.ones(len(truth), bool))
    return [int(label) for label in best.predict(asked)]


def tfidf_svm(train: Sequence[str], labels: Sequence[int], test: Sequence[str]) -> list[int]:
    """Classes that a linear support vector machine on TF-IDF of 1- and 2-grams gives to texts.

    ImportError that names the fix when scikit-learn is missing.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.pipeline import make_pipeline
        from sklearn.svm import LinearSVC
    except ImportError as error:
        raise ImportError(_NEEDS) from error
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = make_pipeline(words, LinearSVC(C=1.0)).fit(list(train), list(labels))
    return [int(label) for label in model.predict(list(test))]


def pixels(images: Sequence[Tensor], side: int = PIXELS) -> np.ndarray:
    """uint8 pictures (3, H, W) as float32 (n, 3 side side) shrunk pixels in [0, 1]."""
    parts = [F.adaptive_avg_pool2d(image.float() / 255, side) for image in images]
    return rearrange(torch.stack(parts), "n c h w -> n (c h w)").numpy()


@torch.inference_mode()
def lite0(images: Sequence[Tensor], side: int = LITE0_PIXELS) -> np.ndarray:
    """uint8 pictures (3, H, H) as float32 (n, 1280): EfficientNet-Lite0's pooled features.

    side: pixels that the network sees. Needs its weights, see `teacher.load_lite0`.
    """
    network, found = load_lite0(), []
    for start in range(0, len(images), 64):
        batch = torch.stack(list(images[start : start + 64])).float() / 255
        seen = network.feature_map(resize(batch, side / batch.shape[-1]), len(network.blocks) - 1)
        found.append(network.head(seen).mean(dim=(2, 3)))
    return torch.cat(found).numpy()
