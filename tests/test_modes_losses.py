"""Losses against their definitions, and the contrastive one in two processes against one."""

import math
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from minibeit3.losses import (
    answer_loss,
    contrastive_loss,
    dice_loss,
    drop_worst,
    smoothed_divergence,
    soft_target_cross_entropy,
)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_soft_targets_extend_the_cross_entropy_of_classes() -> None:
    logits, classes = rand(4, 6), torch.tensor([0, 5, 2, 2])
    sharp = soft_target_cross_entropy(logits, F.one_hot(classes, 6).float())
    torch.testing.assert_close(sharp, F.cross_entropy(logits, classes))
    targets = rand(4, 6, seed=1).softmax(dim=-1)
    mixed = soft_target_cross_entropy(logits, targets)
    torch.testing.assert_close(mixed, F.cross_entropy(logits, targets))


def test_dice_is_zero_for_the_truth_and_one_for_its_opposite() -> None:
    regions = torch.arange(128).view(2, 8, 8) % 2
    sure = 50 * F.one_hot(regions, 3).movedim(-1, 1).float()
    assert dice_loss(sure, regions).item() < 1e-5
    assert dice_loss(sure, 1 - regions).item() > 0.98


def test_dice_weighs_a_class_of_few_pixels_like_one_of_many() -> None:
    regions = torch.zeros(1, 20, 20, dtype=torch.int64)
    regions[0, 0] = 1  # one pixel in twenty
    all_ground = 50 * F.one_hot(torch.zeros_like(regions), 2).movedim(-1, 1).float()
    few = 1 - 1 / 21  # of 20 pixels none found, one added above and below the line
    many = 1 - (2 * 380 + 1) / (400 + 380 + 1)
    torch.testing.assert_close(dice_loss(all_ground, regions).item(), (few + many) / 2)


def test_dice_counts_neither_unknown_pixels_nor_classes_that_are_not_there() -> None:
    logits = rand(1, 4, 6, 6)
    regions = torch.arange(36).view(1, 6, 6) % 2
    known, half = logits.clone(), regions.clone()
    half[:, 3:] = 255
    torch.testing.assert_close(dice_loss(logits, half), dice_loss(logits[:, :, :3], regions[:, :3]))
    known[:, :, 3:] += 9
    torch.testing.assert_close(dice_loss(known, half), dice_loss(logits, half))
    assert dice_loss(logits, torch.full_like(regions, 255)) == 0
    with pytest.raises(ValueError, match="do not fit"):
        dice_loss(logits, regions[:, :3])


def test_answers_count_one_by_one() -> None:
    logits, scores = rand(4, 6), rand(4, 6, seed=1).sigmoid()
    p = logits.sigmoid()
    each = -(scores * p.log() + (1 - scores) * (1 - p).log())
    torch.testing.assert_close(answer_loss(logits, scores), each.sum(dim=1).mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_smoothed_divergence_is_the_divergence_from_the_smoothed_word(smoothing: float) -> None:
    logits, words = rand(5, 9), torch.tensor([0, 8, 3, 3, 1])
    target = torch.full((5, 9), smoothing / 8)
    target[torch.arange(5), words] = 1 - smoothing
    expected = F.kl_div(logits.log_softmax(dim=-1), target, reduction="none").sum(dim=1)
    found = smoothed_divergence(logits, words, smoothing)
    torch.testing.assert_close(found, expected)
    if smoothing:
        perfect = smoothed_divergence(target.log(), words, smoothing)
        torch.testing.assert_close(perfect, torch.zeros(5), atol=1e-6, rtol=0)


def test_the_worst_losses_go_but_never_all() -> None:
    losses = torch.arange(10.0).flip(0)
    assert sorted(drop_worst(losses, 0.2).tolist()) == list(range(8))
    assert drop_worst(losses, 0.0).sum() == losses.sum()
    assert drop_worst(losses[:1], 0.9).tolist() == [9.0]


def unit(seed: int, rows: int = 6) -> Tensor:
    return F.normalize(rand(rows, 8, seed=seed).double(), dim=-1)


SCALE = torch.tensor(1 / 0.07, dtype=torch.float64)


def test_contrast_is_the_mean_of_both_directions() -> None:
    image, text = unit(0), unit(1)
    logits = SCALE * image @ text.T
    each = [-x.log_softmax(dim=1).diagonal().mean() for x in (logits, logits.T)]
    found = contrastive_loss(image, text, SCALE)
    assert float(found) == pytest.approx(float(each[0] + each[1]) / 2, abs=1e-6)
    torch.testing.assert_close(contrastive_loss(text, image, SCALE), found)


def test_captions_of_one_image_are_no_negatives_of_each_other() -> None:
    image, text = unit(0), unit(1)
    different = contrastive_loss(image, text, SCALE, torch.arange(6))
    assert torch.equal(different, contrastive_loss(image, text, SCALE))
    assert contrastive_loss(image, text, SCALE, torch.zeros(6, dtype=torch.long)) == 0
    ids = torch.tensor([4, 4, 7, 8, 9, 3])
    expected = 0.0
    for a, b in ((image, text), (text, image)):
        for i in range(6):
            others = [j for j in range(6) if j == i or ids[j] != ids[i]]
            logits = SCALE * a[i] @ b[others].T
            expected -= float(logits.log_softmax(dim=0)[others.index(i)]) / 12
    found = contrastive_loss(image, text, SCALE, ids)
    assert float(found) == pytest.approx(expected, abs=1e-6)
    assert found < different


PER_PROCESS = 3
IDS = torch.tensor([4, 1, 2, 4, 5, 1])


def gradients(rank: int, world: int, with_ids: bool) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of two encoders and the scale on this process's share of the batch."""
    mine = slice(rank * 6 // world, (rank + 1) * 6 // world)
    weights = [rand(8, 8, seed=s).double().requires_grad_() for s in (2, 3)]
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    image, text = (
        F.normalize(x[mine] @ w, dim=-1) for x, w in zip((unit(0), unit(1)), weights, strict=True)
    )
    loss = contrastive_loss(image, text, scale.exp(), IDS[mine] if with_ids else None)
    loss.backward()
    return loss.detach(), [p.grad for p in (*weights, scale) if p.grad is not None]


def share(rank: int, folder: str) -> None:
    """One of two processes: mean loss and gradients over processes, as DDP takes them."""
    dist.init_process_group(
        "gloo", f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    for with_ids in (False, True):
        loss, grads = gradients(rank, 2, with_ids)
        for value in (loss, *grads):
            dist.all_reduce(value)
            value /= 2
        torch.save([loss, *grads], f"{folder}/{rank}{with_ids}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_loss_and_gradients_of_one(tmp_path: Path) -> None:
    processes = spawn(share, args=(str(tmp_path),), nprocs=2, join=False)
    assert processes is not None
    try:
        assert processes.join(timeout=60) or processes.join(timeout=60)  # each waits for one
    finally:
        for process in processes.processes:
            process.kill()  # pyright: ignore[reportAttributeAccessIssue]
    for with_ids in (False, True):
        loss, grads = gradients(0, 1, with_ids)
        for rank in (0, 1):
            found = torch.load(tmp_path / f"{rank}{with_ids}.pt", weights_only=True)
            for ours, theirs in zip([loss, *grads], found, strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_bad_shapes_and_rates_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(4, 6\) and \(4, 5\)"):
        soft_target_cross_entropy(rand(4, 6), rand(4, 5))
    with pytest.raises(ValueError, match=r"\(4, 6\) and \(6,\)"):
        answer_loss(rand(4, 6), rand(6))
    with pytest.raises(ValueError, match="image_ids"):
        contrastive_loss(unit(0), unit(1), SCALE, torch.arange(5))
    with pytest.raises(ValueError, match="smoothing"):
        smoothed_divergence(rand(2, 3), torch.tensor([0, 1]), 1.0)
    with pytest.raises(ValueError, match="ratio"):
        drop_worst(rand(3), math.nan)
