"""Image-caption pairs of scenes: the dataset for pretraining, captioning, retrieval, segmentation.

Do not flip or crop these pictures: the captions speak of left and right.
"""

import numpy as np
import torch
from einops import rearrange
from torch.utils.data import Dataset

from minibeit3.data.sample import Sample
from minibeit3.data.scene_splits import HELD_PAIRS, random_scene, rule_for
from minibeit3.data.scene_text import (
    Relation,
    canonical_caption,
    count_captions,
    draw_caption,
    parse_caption,
    relation_captions,
)
from minibeit3.data.scenes import (
    SHAPES,
    Scene,
    boxes,
    draw,
    item_rng,
    pick,
    regions,
    to_dict,
    world_named,
)


class SceneCaptions(Dataset[Sample]):
    """`length` scenes of a world, each with one caption of a random grammar.

    split: "train", "val", "test", or "control" with a holdout. size: picture side in pixels.
    holdout: a name of `scene_splits.HOLDOUTS`; its test split shows only held-out compositions.
    most: things in a scene at most, None = as many as the split has.
    Items have image uint8 (3, H, W), texts (caption,), regions int64 (H, W), boxes float32 (n, 4)
    and info: scene, grammar, canonical (the reference caption), split.
    Raises ValueError for an unknown split, world or holdout, and a length or `most` out of range.
    """

    def __init__(
        self,
        split: str,
        length: int,
        size: int = 64,
        world: str = "shapes",
        holdout: str | None = None,
        most: int | None = None,
    ) -> None:
        if length < 1:
            raise ValueError(f"a dataset of {length} items is empty: ask for at least 1")
        if holdout == "hop":
            raise ValueError("holdout 'hop' concerns questions only: use it with SceneVQA")
        self.world = world_named(world)
        self.rule = rule_for(self.world, split, holdout).at_most(most)
        self.split, self.length, self.size = split, length, size

    def __len__(self) -> int:
        return self.length

    def scene(self, index: int) -> tuple[Scene, str, str]:
        """(scene, grammar, caption) of an item without drawing it; IndexError past the end."""
        index = checked_index(index, self.length)
        rng = item_rng(self.world.name, "caption", self.split, self.rule.holdout, index)
        while True:
            scene = random_scene(rng, self.world, self.rule)
            if not self.rule.held or self.rule.holdout not in ("relation", "count"):
                return scene, *draw_caption(rng, scene)
            if telling := captions_of_held(scene, self.rule.holdout):
                return scene, self.rule.holdout, pick(rng, telling)

    def __getitem__(self, index: int) -> Sample:
        scene, grammar, caption = self.scene(index)
        return Sample(
            key=f"{self.world.name}/caption/{self.rule.holdout or 'all'}/{self.split}/{index}",
            image=picture(scene, self.size),
            texts=(caption,),
            regions=torch.from_numpy(regions(scene, self.size)),
            boxes=torch.from_numpy(boxes(scene, self.size)),
            info={
                "scene": to_dict(scene),
                "grammar": grammar,
                "canonical": canonical_caption(scene),
                "split": self.split,
            },
        )


def picture(scene: Scene, size: int) -> torch.Tensor:
    """The drawn scene as uint8 (3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(rearrange(draw(scene, size), "h w c -> c h w")))


def checked_index(index: int, length: int) -> int:
    """A non-negative index; IndexError past either end, so that plain iteration stops."""
    if not -length <= index < length:
        raise IndexError(f"item {index} of a dataset of {length}")
    return index % length


def captions_of_held(scene: Scene, holdout: str) -> list[str]:
    """The scene's captions that state a held-out "relation" or "count"; their grammar is so named.

    A scene that shows what was held out can also be told without saying it: those are left out.
    """
    if holdout == "count":
        return [caption for caption in count_captions(scene) if "four circles" in caption]
    claims = {caption: parse_caption(caption, SHAPES) for caption in relation_captions(scene)}
    return [
        caption
        for caption, claim in claims.items()
        if isinstance(claim, Relation) and claim.kinds_from_left() in HELD_PAIRS
    ]
