"""The detector: its targets are exact on scenes, its decoding undoes them, its loss falls."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from minibeit3 import PRESETS, build_backbone
from minibeit3.data.images import to_model
from minibeit3.data.scene_captions import SceneCaptions
from minibeit3.data.scenes import boxes, instances, regions
from minibeit3.metrics_detection import average_precision
from minibeit3.modes import ObjectDetector
from minibeit3.modes.detection import Cells, crop, focal_loss, generalised_iou, paste
from minibeit3.objects import Objects, box_iou, mask_iou

CONFIG = replace(PRESETS["tiny"], depth=1, width=32, ffn_width=32, heads=2, fusion_layers=1)
SCENES = SceneCaptions("val", 20)


def truth_of(index: int) -> Objects:
    """The things of a scene, class = kind - 1."""
    scene = SCENES.scene(index)[0]
    there = torch.from_numpy(instances(scene, 64))
    masks = torch.stack([there == i + 1 for i in range(len(scene.things))])
    kinds = torch.from_numpy(regions(scene, 64))
    labels = torch.stack([kinds[mask][0] for mask in masks]) - 1
    return Objects(torch.from_numpy(boxes(scene, 64)), labels, masks, torch.ones(len(masks)))


def detector(classes: int = 6) -> ObjectDetector:
    g = torch.Generator().manual_seed(0)
    return ObjectDetector(build_backbone(CONFIG, g), classes, g)


class Oracle(ObjectDetector):
    """Says at every cell what its targets are, and nothing anywhere else."""

    truth: Objects

    def forward(self, image: Tensor) -> Cells:
        cell, labels, sides, masks = self.targets(self.truth)
        said = Cells(
            torch.full((1, 256, 6), -9.0),
            torch.zeros(1, 256, 4),
            torch.full((1, 256, *masks.shape[1:]), -9.0),
        )
        said.classes[0, cell, labels] = 9
        said.boxes[0, cell] = sides
        said.masks[0, cell] = 18 * masks - 9
        return said


def test_targets_decode_to_the_scene_they_came_from() -> None:
    g = torch.Generator().manual_seed(0)
    oracle, found, truth = Oracle(build_backbone(CONFIG, g), 6, g), [], []
    for index in range(len(SCENES)):
        oracle.truth = truth_of(index)
        truth.append(oracle.truth)
        found += oracle.detect(torch.zeros(1, 3, 64, 64))
        assert len(found[-1].labels) == len(oracle.truth.labels)
        overlap = mask_iou(found[-1].masks, oracle.truth.masks).amax(0)
        assert overlap.min() > 0.75, index
        assert oracle.loss(torch.zeros(1, 3, 64, 64), [oracle.truth]) < 0.02
    assert average_precision(found, truth, "box")["AP"].accuracy == pytest.approx(1)
    assert average_precision(found, truth, "mask")["AP50"].accuracy == pytest.approx(1)


def test_every_thing_has_a_cell_and_every_cell_lies_in_its_thing() -> None:
    model = detector()
    centres = model.centres(torch.device("cpu"))
    assert centres[0].tolist() == [2, 2] and centres[17].tolist() == [6, 6]
    for index in range(len(SCENES)):
        truth = truth_of(index)
        cell, labels, sides, _ = model.targets(truth)
        assert sides.unique(dim=0).shape == truth.boxes.shape
        assert len(cell.unique()) == len(cell)
        assert ((centres[cell] > sides[:, :2]) & (centres[cell] < sides[:, 2:])).all()
        for box, label in zip(truth.boxes, truth.labels, strict=True):
            assert (labels[(sides == box).all(1)] == label).all()


def test_a_thing_smaller_than_a_cell_still_has_one_and_the_smaller_thing_wins() -> None:
    large, dot = torch.tensor([0.0, 0, 60, 60]), torch.tensor([28.0, 28, 29, 29])
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    both = Objects(torch.stack([large, dot]), torch.tensor([0, 1]), masks, torch.ones(2))
    cell, labels, sides, _ = detector().targets(both)
    assert (labels == 1).sum() == 1
    assert torch.equal(sides[labels == 1][0], dot)
    assert cell[labels == 1].item() in (7 * 16 + 7, 6 * 16 + 6, 7 * 16 + 6, 6 * 16 + 7)


def test_pictures_without_things_teach_that_nothing_is_there() -> None:
    model = detector()
    masks = torch.zeros(0, 64, 64, dtype=torch.bool)
    empty = Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), masks, torch.zeros(0))
    image = torch.zeros(2, 3, 64, 64)
    model.loss(image, [empty, truth_of(0)]).backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in model.head.sides.parameters()
    )
    loss = model.loss(image[:1], [empty])
    loss.backward()
    assert 0 < loss.item() < math.inf
    assert [len(one.labels) for one in model.detect(image, least=0.9)] == [0, 0]
    with pytest.raises(ValueError, match=r"knows 0 \.\. 1"):
        detector(2).loss(image[:1], [truth_of(0)._replace(labels=truth_of(0).labels * 0 + 2)])


def test_a_detector_learns_a_picture_by_heart() -> None:
    torch.manual_seed(0)
    model = detector().train()
    truth = [truth_of(index) for index in range(2)]
    pictures = [SCENES[index].image for index in range(2)]
    image = to_model(torch.stack([p for p in pictures if p is not None]), 64)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(100):
        optimiser.zero_grad()
        loss = model.loss(image, truth)
        loss.backward()
        optimiser.step()
    found = model.eval().detect(image)
    assert average_precision(found, truth, "box")["AP50"].accuracy > 0.9
    assert average_precision(found, truth, "mask")["AP50"].accuracy > 0.9
    assert all((one.scores[:-1] >= one.scores[1:]).all() for one in found)


def test_masks_cut_out_and_pasted_back_are_the_same() -> None:
    g = torch.Generator().manual_seed(0)
    low = torch.randint(0, 30, (5, 2), generator=g)
    sides = torch.cat([low, low + 14], 1).float()  # one cell per pixel
    masks = torch.zeros(5, 64, 64, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, sides.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = torch.rand(14, 14, generator=g) < 0.5
    assert torch.equal(paste(2 * crop(masks, sides) - 1, sides, 64), masks)
    beyond = paste(torch.ones(1, 14, 14), torch.tensor([[-10.0, 50, 6, 80]]), 64)
    assert beyond[0].nonzero().amin(0).tolist() == [50, 0]
    assert beyond[0].nonzero().amax(0).tolist() == [63, 5]


def test_generalised_iou_is_iou_inside_a_common_hull_and_negative_apart() -> None:
    a = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 4, 4]])
    b = torch.tensor([[0.0, 0, 4, 4], [0, 0, 2, 4], [8, 0, 12, 4]])
    found = generalised_iou(a, b)
    torch.testing.assert_close(found, torch.tensor([1.0, 0.5, -1 / 3]))
    torch.testing.assert_close(found[:2].double(), box_iou(a, b).diagonal()[:2])


def test_focal_loss_forgets_what_is_easy() -> None:
    logits, wanted = torch.tensor([4.0, -4.0, 0.0]), torch.tensor([1.0, 0.0, 1.0])
    plain = focal_loss(logits, wanted, alpha=0.5, gamma=0)
    cross = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    torch.testing.assert_close(2 * plain, cross)
    ratio = focal_loss(logits, wanted, alpha=0.5) / plain
    torch.testing.assert_close(ratio, (1 - torch.tensor([4.0, 4.0, 0.0]).sigmoid()) ** 2)
