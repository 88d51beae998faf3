"""Metrics against second implementations: dense CIDEr-D, scikit-learn, pycocotools, and by hand."""

import contextlib
import io
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import jaccard_score
from torch import Tensor

from minibeit3.metrics import (
    cider,
    class_iou,
    confusion,
    mean_iou,
    of_sums,
    recall_at,
    span_f1,
    spans,
    top1,
)
from minibeit3.metrics_detection import average_precision
from minibeit3.objects import Objects, box_iou, mask_iou, suppress

WORDS = ["a", "red", "star", "is", "left", "of", "the", "ring"]


def dense_cider(captions: list[str], references: list[list[str]]) -> list[float]:
    """CIDEr-D written from the formula: one dense vector of all n-grams per text and n."""
    everything = [text.split() for texts in [captions, *references] for text in texts]
    scores = np.zeros(len(captions))
    for n in range(1, 5):
        vocabulary = sorted(
            {tuple(w[i : i + n]) for w in everything for i in range(len(w) - n + 1)}
        )
        place = {gram: i for i, gram in enumerate(vocabulary)}

        def vector(text: str, n: int = n, place: dict = place) -> np.ndarray:
            out, words = np.zeros(len(place)), text.split()
            for i in range(len(words) - n + 1):
                out[place[tuple(words[i : i + n])]] += 1
            return out

        shown = np.array([sum(vector(t) for t in texts) for texts in references]) > 0
        idf = np.log(len(references) / np.maximum(1, shown.sum(0)))
        for row, (caption, texts) in enumerate(zip(captions, references, strict=True)):
            c = vector(caption) * idf
            for text in texts:
                s = vector(text) * idf
                size = np.linalg.norm(c) * np.linalg.norm(s)
                gap = len(caption.split()) - len(text.split())
                value = (np.minimum(c, s) * s).sum() / size if size else 0.0
                scores[row] += 10 / 4 * np.exp(-(gap**2) / 72) * value / len(texts)
    return scores.tolist()


texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(" ".join)


@given(st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=3)), min_size=1, max_size=5))
def test_cider_is_the_published_formula(items: list[tuple[str, list[str]]]) -> None:
    captions, references = [said for said, _ in items], [meant for _, meant in items]
    assert cider(captions, references) == pytest.approx(dense_cider(captions, references), abs=1e-9)


def test_cider_gives_ten_to_the_reference_and_nothing_for_repeating_or_common_words() -> None:
    references = [["a red star above the ring"], ["a blue cross below the ring"]]
    same = cider([texts[0] for texts in references], references)
    assert same == pytest.approx([10, 10])
    assert cider(["A red STAR, above the ring!", "the ring"], references)[0] == pytest.approx(10)
    assert cider(["a the ring", "a the ring"], references) == [0, 0]  # in both, so worth nothing
    once, thrice = (cider([said, "x"], references)[0] for said in ("star", "star star star"))
    assert 0 < thrice < once * 1.4  # clipped: without, it would win on length and count
    assert cider(["", "x"], references) == [0, 0]


@pytest.mark.parametrize(("captions", "references"), [([], []), (["a"], []), (["a"], [[]])])
def test_cider_refuses_pictures_without_references(
    captions: list[str], references: list[list[str]]
) -> None:
    with pytest.raises(ValueError, match="reference"):
        cider(captions, references)


def test_recall_counts_any_right_answer_and_gives_no_credit_for_ties() -> None:
    right = torch.tensor([[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]).bool()
    similarity = torch.tensor([[0.9, 0.5, 0.1, 0.2], [0.9, 0.1, 0.8, 0.2], [0.4, 0.3, 0.2, 0.1]])
    assert [recall_at(k, similarity, right).accuracy * 3 for k in (1, 2, 3, 4)] == pytest.approx(
        [1, 2, 2, 3]
    )
    assert recall_at(3, torch.zeros(3, 4), right).accuracy == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="1 queries have no right"):
        recall_at(1, similarity, right & (torch.arange(3) < 2)[:, None])
    with pytest.raises(ValueError, match="k is 0"):
        recall_at(0, similarity, right)


def random_maps(classes: int, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    truth = torch.randint(classes, (6, 8, 8), generator=g)
    noise = torch.rand(truth.shape, generator=g) < 0.4
    said = torch.where(noise, torch.randint(classes, truth.shape, generator=g), truth)
    return said, truth.masked_fill(torch.rand(truth.shape, generator=g) < 0.1, 255)


def test_mean_iou_is_scikit_learns_jaccard_without_the_ignored_pixels() -> None:
    said, truth = random_maps(5, 0)
    counts = truth != 255
    expected = jaccard_score(truth[counts].numpy(), said[counts].numpy(), average="macro")
    found = mean_iou(confusion(said, truth, 5))
    assert found.accuracy == pytest.approx(expected)
    assert found.low < found.accuracy < found.high
    assert found.n == 6


def test_a_class_that_is_nowhere_does_not_count() -> None:
    said, truth = random_maps(3, 1)
    assert mean_iou(confusion(said, truth, 9)) == mean_iou(confusion(said, truth, 3))
    assert class_iou(confusion(said, truth, 9).sum(0))[3:].isnan().all()
    with pytest.raises(ValueError, match=r"regions has classes 0 \.\. 2, not 0 \.\. 1"):
        confusion(said * 0, truth, 2)
    with pytest.raises(ValueError, match="nothing to measure in 0 items"):
        mean_iou(torch.zeros(0, 3, 3))


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    g = torch.Generator().manual_seed(0)
    hits = 0
    for trial in range(60):
        right = (torch.rand(60, 1, generator=g) < 0.7).float()
        counts = torch.cat([right, torch.ones_like(right)], 1)
        found = of_sums(counts, lambda sums: sums[..., 0] / sums[..., 1], seed=trial)
        hits += found.low <= 0.7 <= found.high
    assert 52 <= hits <= 60


def test_top1_counts_equal_classes() -> None:
    assert top1(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 0, 4])).accuracy == 0.75
    with pytest.raises(ValueError, match="must be equal"):
        top1(torch.zeros(3), torch.zeros(3, 1))


def test_spans_begin_and_end_where_the_tags_say() -> None:
    assert spans([0, 1, 2, 0, 1, 1, 2]) == {(1, 3), (4, 5), (5, 7)}
    assert spans([2, 2, 0, 2]) == {(0, 2), (3, 4)}
    assert spans([0, 0]) == set()
    score = span_f1([[1, 2, 0], [1, 0, 0]], [[1, 2, 0], [0, 1, 0]])  # one of two, both ways
    assert score.accuracy == 0.5
    assert span_f1([[1, 0]], [[1, 2]]).accuracy == 0  # half a span is none
    with pytest.raises(ValueError, match="2 tags for 3 words"):
        span_f1([[0, 1]], [[0, 1, 0]])
    with pytest.raises(ValueError, match="nothing to measure"):
        span_f1([[0, 0]], [[0, 0]])


# ---- boxes and masks


def masks_of(boxes: Tensor, size: int = 32) -> Tensor:
    """Filled boxes."""
    at = torch.arange(size) + 0.5
    x0, y0, x1, y1 = (edge[:, None] for edge in boxes.unbind(1))
    columns, rows = (x0 < at) & (at < x1), (y0 < at) & (at < y1)
    return rows[:, :, None] & columns[:, None]


def objects(boxes: Tensor, labels: Tensor, scores: Tensor | None = None) -> Objects:
    scores = torch.ones(len(labels)) if scores is None else scores
    return Objects(boxes, labels, masks_of(boxes), scores)


def random_scenes(pictures: int, seed: int) -> tuple[list[Objects], list[Objects]]:
    """Things, and detections: jittered, doubled, invented, some of another class."""
    g = torch.Generator().manual_seed(seed)
    found, truth = [], []
    for _ in range(pictures):
        n = int(torch.randint(0, 5, (), generator=g))
        low = torch.randint(0, 20, (n, 2), generator=g).float()
        size = torch.randint(4, 12, (n, 2), generator=g).float()
        boxes, labels = torch.cat([low, low + size], 1), torch.randint(3, (n,), generator=g)
        truth.append(objects(boxes, labels))
        twice = torch.cat([boxes, boxes])
        jittered = twice + torch.randint(-2, 3, twice.shape, generator=g)
        jittered[:, 2:] = torch.maximum(jittered[:, 2:], jittered[:, :2] + 1)
        said = torch.cat([labels, (labels + torch.randint(2, (n,), generator=g)) % 3])
        invented = torch.tensor([[1.0, 1, 9, 9]])
        found.append(
            objects(
                torch.cat([jittered, invented]),
                torch.cat([said, torch.zeros(1, dtype=torch.int64)]),
                torch.rand(2 * n + 1, generator=g),
            )
        )
    return found, truth


def coco(found: list[Objects], truth: list[Objects], kind: str) -> tuple[float, float]:
    """(AP50, AP) of pycocotools."""
    tools = pytest.importorskip("pycocotools.coco")
    encode = pytest.importorskip("pycocotools.mask").encode
    evaluation = pytest.importorskip("pycocotools.cocoeval")

    def rows(pictures: list[Objects]) -> list[dict]:
        out = []
        for image, (boxes, labels, masks, scores) in enumerate(pictures):
            for box, label, mask, score in zip(boxes, labels, masks, scores, strict=True):
                x0, y0, x1, y1 = box.tolist()
                out.append(
                    {
                        "id": len(out) + 1,
                        "image_id": image,
                        "category_id": int(label),
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "segmentation": encode(np.asfortranarray(mask.byte().numpy())),
                        "area": (x1 - x0) * (y1 - y0),
                        "iscrowd": 0,
                        "score": float(score),
                    }
                )
        return out

    with contextlib.redirect_stdout(io.StringIO()):
        known = tools.COCO()
        known.dataset = {
            "images": [{"id": i, "height": 32, "width": 32} for i in range(len(truth))],
            "categories": [{"id": i} for i in range(3)],
            "annotations": rows(truth),
        }
        known.createIndex()
        guessed = tools.COCO()
        guessed.dataset = {**known.dataset, "annotations": rows(found)}
        guessed.createIndex()
        scored = evaluation.COCOeval(known, guessed, {"box": "bbox", "mask": "segm"}[kind])
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    return scored.stats[1], scored.stats[0]


@pytest.mark.parametrize("kind", ["box", "mask"])
@pytest.mark.parametrize("seed", [0, 1])
def test_average_precision_is_that_of_pycocotools(kind: str, seed: int) -> None:
    found, truth = random_scenes(25, seed)
    ours = average_precision(found, truth, kind)  # pyright: ignore[reportArgumentType]
    expected = coco(found, truth, kind)
    assert 0.05 < expected[1] < expected[0] < 0.95
    assert (ours["AP50"].accuracy, ours["AP"].accuracy) == pytest.approx(expected, abs=1e-9)


def test_average_precision_by_hand() -> None:
    """Two things; the surest detection is right, the next wrong, the third right: 1 and 2/3."""
    boxes = torch.tensor([[0.0, 0, 8, 8], [10, 10, 18, 18]])
    truth = [objects(boxes, torch.tensor([0, 0]))]
    said = torch.stack([boxes[0], torch.tensor([20.0, 20, 30, 30]), boxes[1]])
    found = [objects(said, torch.zeros(3, dtype=torch.int64), torch.tensor([0.9, 0.8, 0.7]))]
    value = average_precision(found, truth)["AP50"].accuracy
    assert value == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)
    assert average_precision(truth, truth)["AP"] == (1, 1, 1, 1)
    twice = [objects(boxes[[0, 0]], torch.tensor([0, 0]))]
    assert average_precision(twice, truth)["AP50"].accuracy == pytest.approx(51 / 101)
    nothing = objects(boxes[:0], torch.zeros(0, dtype=torch.int64))
    assert average_precision([nothing], truth)["AP50"].accuracy == 0
    with pytest.raises(ValueError, match="nothing to compare"):
        average_precision(found, [nothing])


def test_overlaps_of_boxes_are_those_of_their_masks_and_empty_things_overlap_nothing() -> None:
    found, truth = random_scenes(12, 3)
    for a, b in zip(found, truth, strict=True):
        inside = a.boxes.clamp(0, 32)
        torch.testing.assert_close(box_iou(inside, b.boxes), mask_iou(masks_of(inside), b.masks))
    empty = torch.zeros(1, 4)
    assert box_iou(empty, empty).item() == 0
    assert mask_iou(masks_of(empty), masks_of(empty)).item() == 0


def test_suppression_keeps_the_surest_of_each_class_and_place() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [20, 20, 30, 30]])
    scores, labels = torch.tensor([0.8, 0.9, 0.5, 0.1]), torch.tensor([0, 0, 1, 0])
    kept = suppress(boxes, scores, labels, iou=0.5)
    assert kept.tolist() == [1, 2, 3]
    assert suppress(boxes, scores, labels, iou=0.9).tolist() == [1, 0, 2, 3]
    assert suppress(boxes[:0], scores[:0], labels[:0], 0.5).tolist() == []
    assert all(a >= b for a, b in pairwise(scores[kept].tolist()))
    assert not math.isnan(scores.sum())
