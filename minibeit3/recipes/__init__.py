"""The recipes by name; a file is imported when one of its recipes is asked for."""

from collections.abc import Mapping
from importlib import import_module

from minibeit3.recipe import Recipe, Setup

RECIPES: Mapping[str, str] = {
    "emoji-classes": "vision:emoji_classes",
    "scenes-classes": "vision:scenes_classes",
    "fashion-mnist": "vision:fashion_mnist",
    "scenes-segmentation": "vision:scenes_segmentation",
    "emoji-segmentation": "vision:emoji_segmentation",
    "scenes-detection": "detection:scenes_detection",
    "emoji-detection": "detection:emoji_detection",
    "glosses": "language:glosses",
    "lemma-tagging": "language:lemma_tagging",
    "scenes-vqa": "fusion:scenes_vqa",
    "scenes-vqa-long": "fusion:scenes_vqa_long",
    "emoji-vqa": "fusion:emoji_vqa",
    "easy-vqa": "fusion:easy_vqa",
    "scenes-nlvr2": "fusion:scenes_nlvr2",
    "binding": "binding:binding",
    "binding-dual": "binding:binding_dual",
    "emoji-retrieval": "dual:emoji_retrieval",
    "scenes-retrieval": "dual:scenes_retrieval",
    "scenes-captions": "seq2seq:scenes_captions",
    "emoji-captions": "seq2seq:emoji_captions",
    "coco-captions": "released:coco_captions",
    "vqav2": "released:vqav2",
    "nlvr2": "released:nlvr2",
    "flickr30k-retrieval": "released:flickr30k_retrieval",
    "imagenet": "released:imagenet",
    "ade20k": "released:ade20k",
}
"""Name -> file in this folder and function, Setup -> Recipe."""

IMAGE_SIZES: Mapping[str, int] = {
    "coco-captions": 480,
    "vqav2": 480,
    "nlvr2": 224,
    "flickr30k-retrieval": 384,
    "imagenet": 224,
    "ade20k": 512,
}
"""Pixels of the released recipes; the other recipes take the model as it is."""


def open_recipe(name: str, setup: Setup) -> Recipe:
    """The recipe, with its data open; ValueError for unknown names and controls it lacks."""
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}: choose from {', '.join(sorted(RECIPES))}")
    file, _, function = RECIPES[name].partition(":")
    recipe: Recipe = getattr(import_module(f"minibeit3.recipes.{file}"), function)(setup)
    for field, default in (("blind", None), ("holdout", None), ("split", "test")):
        value, known = getattr(setup, field), recipe.controls.get(field, ())
        if value != default and value not in known:
            offer = f"there are {', '.join(known)}" if known else "there are none"
            raise ValueError(f"recipe {name} has no {field} {value!r}: {offer}")
    return recipe
