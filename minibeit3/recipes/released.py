"""The paper's benchmarks by the released recipes: your data, a released checkpoint, one command.

Hyper-parameters are those of the released fine-tuning code for base (large in a second column);
ADE20K has none there and follows the paper's table as far as our head allows. Departures from the
code: no RandAugment, a mirror image only where no word names a side, no augmented validation.
Layouts of the data: `data.captions`, `data.vqav2`, `data.nlvr2`, `data.class_folders`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minibeit3.batches import Batches
from minibeit3.data.captions import load_coco, load_flickr30k
from minibeit3.data.class_folders import ADE20K_CLASSES, load_ade20k, load_imagenet
from minibeit3.data.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    random_flip,
    random_resized_crop,
    to_model,
)
from minibeit3.data.nlvr2 import load_nlvr2
from minibeit3.data.records import Records
from minibeit3.data.sample import Sample
from minibeit3.data.vqav2 import answer_vocabulary, load_vqav2
from minibeit3.metrics import cider, confusion, mean_iou, top1
from minibeit3.modes import (
    ImageCaptioner,
    ImageClassifier,
    ImageTextRetriever,
    SemanticSegmenter,
    VisualQuestionAnswerer,
    VisualReasoner,
    hide_words,
)
from minibeit3.optimiser import released_no_weight_decay
from minibeit3.recipe import Figures, Recipe, Setup, first, in_batches, need
from minibeit3.recipes.dual import Matched, embed_images, embed_texts, retrieval_figures
from minibeit3.recipes.fusion import (
    answers_of,
    questions_batch,
    statements_batch,
    truths_of,
    vqa_figures,
    vqa_references,
)
from minibeit3.storage import write_file
from minibeit3.train import TrainConfig

CAPTION_LENGTH, HIDE, BEAMS = 32, 0.7, 3
SMOOTHING, MIXUP, CUTMIX = 0.1, 0.8, 1.0
BASE_DEPTH = 12


class Lines:
    """One sample per caption of a picture, as the released index files have it."""

    def __init__(self, records: Records) -> None:
        self.records = records
        texts = [record.sample.texts for record in records.records]
        self.places = [(i, text) for i, several in enumerate(texts) for text in several]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Sample:
        record, text = self.places[index]
        return replace(self.records[record], texts=(text,))


class Numbered:
    """Batches that know their number, which the captioning loss asks for."""

    def __init__(self, samples: Any, size: int, seed: int, collate: Callable[..., Any]) -> None:
        self.batches = Batches(samples, size, seed, collate)

    def batch(self, number: int) -> Any:
        """Batch `number` with its number."""
        return self.batches.batch(number)._replace(iteration=number)

    def names(self, number: int) -> list[str]:
        return self.batches.names(number)


class Hidden(NamedTuple):
    """image float (B, 3, S, S); shown, targets int64 and real, hidden bool (B, T); iteration."""

    image: Tensor
    shown: Tensor
    real: Tensor
    hidden: Tensor
    targets: Tensor
    iteration: int = 0


class Pictures(NamedTuple):
    """image: float (B, 3, S, S). labels: int64 (B,) or (B, S, S), or float (B, classes)."""

    image: Tensor
    labels: Tensor


def coco_captions(setup: Setup) -> Recipe:
    """COCO, Karpathy's splits; CIDEr on `split`; server file: image_id and caption."""
    root, words = setup.root(), setup.tokenizer
    training = Lines(need(load_coco(root, "train"), "texts", "COCO train"))

    def collate(samples: list[Sample], g: torch.Generator) -> Hidden:
        text, real = setup.words([sample.texts[0] for sample in samples], CAPTION_LENGTH)
        shown, hidden = hide_words(text, real, HIDE, setup.config.vocab_size, g, words.mask_id)
        return Hidden(augmented(samples, setup, g), shown, real, hidden, text)

    def tell(model: ImageCaptioner, samples: Sequence[Sample]) -> list[str]:
        length = min(CAPTION_LENGTH, setup.config.max_text_length)
        parts = in_batches(model, samples, lambda part: setup.pixels([s.image for s in part]))
        ids = [found for _, image in parts for found in model.generate(image, length, BEAMS)]
        return [words.decode(caption) for caption in ids]

    def evaluate(model: ImageCaptioner, limit: int) -> Figures:
        samples = first(need(load_coco(root, setup.split), "texts", f"COCO {setup.split}"), limit)
        scores = cider(tell(model, samples), [sample.texts for sample in samples])
        return {"CIDEr": sum(scores) / len(scores)}

    def export(model: ImageCaptioner, path: Path) -> Path:
        samples = list(load_coco(root, setup.split))
        told = zip(samples, tell(model, samples), strict=True)
        return write_json(path, [{"image_id": s.info["image_id"], "caption": t} for s, t in told])

    return Recipe(
        name="coco-captions",
        mode="seq2seq",
        about="COCO captions, Karpathy's training and restval images",
        build=lambda backbone, g: ImageCaptioner(
            backbone, words.bos_id, words.pad_id, words.eos_id, words.mask_id, g
        ),
        samples=setup.choose(training),
        collate=collate,
        loss=lambda model, batch: model.loss(*batch),
        evaluate=evaluate,
        references=lambda _: {},
        plan=plan_of(setup, len(training), 256, 10, 1, (4e-5, 8e-6), (1.0, 1.0)),
        drop_path=0.1,
        undecayed=released_no_weight_decay,
        controls={"blind": ("image",), "split": ("val", "test")},
        source=Numbered,
        export=export,
    )


def vqav2(setup: Setup) -> Recipe:
    """VQAv2: train and most of val; soft accuracy on the rest; server file of the test split."""
    root = setup.root()
    answers = tuple(answer_vocabulary(root))
    if not answers:
        raise ValueError(f"{root}: no answer is frequent enough to be learned")
    train, more = load_vqav2(root, "train"), load_vqav2(root, "trainable_val")
    train.records += more.records
    held = load_vqav2(root, "rest_val")

    def evaluate(model: VisualQuestionAnswerer, limit: int) -> Figures:
        samples = first(need(held, "answers", "VQAv2 rest_val"), limit)
        return vqa_figures(samples, answers_of(model, samples, setup, answers))

    def export(model: VisualQuestionAnswerer, path: Path) -> Path:
        samples = list(load_vqav2(root, "test"))
        told = zip(samples, answers_of(model, samples, setup, answers), strict=True)
        return write_json(path, [{"question_id": s.info["qid"], "answer": t} for s, t in told])

    return Recipe(
        name="vqav2",
        mode="fusion",
        about=f"VQAv2, {len(answers):,} answers",
        build=lambda backbone, g: VisualQuestionAnswerer(backbone, len(answers), g),
        samples=setup.choose(need(train, "answers", "VQAv2 train")),
        collate=lambda samples, g: questions_batch(samples, setup, answers)._replace(
            image=augmented(samples, setup, g)
        ),
        loss=lambda model, batch: model.loss(*batch),
        evaluate=evaluate,
        references=lambda limit: vqa_references(first(train, 10 * limit), first(held, limit)),
        plan=replace(
            plan_of(setup, len(train), 128, 10, 1, (3e-5, 2e-5), (1.0, 1.0)),
            betas=(0.9, 0.98),
            weight_decay=0.01,
        ),
        drop_path=0.1 if setup.config.depth <= BASE_DEPTH else 0.15,
        head_lr=20.0,
        undecayed=released_no_weight_decay,
        final_norm=False,
        labels=answers,
        controls={"blind": ("image", "text")},
        export=export,
    )


def nlvr2(setup: Setup) -> Recipe:
    """NLVR2: accuracy on dev ("val") or test-P ("test"); server file: identifier,True or False."""
    root = setup.root()
    training = need(load_nlvr2(root, "train"), "label", "NLVR2 train")
    part = {"val": "dev", "test": "test-P"}[setup.split]

    def evaluate(model: VisualReasoner, limit: int) -> Figures:
        samples = first(need(load_nlvr2(root, part), "label", f"NLVR2 {part}"), limit)
        told = truths_of(model, samples, setup)
        hits = [guess == sample.label for guess, sample in zip(told, samples, strict=True)]
        groups: dict[str, list[bool]] = {}
        for sample, hit in zip(samples, hits, strict=True):
            split, group, _, sentence = str(sample.info["identifier"]).split("-")
            groups.setdefault(f"{split}-{group}-{sentence}", []).append(hit)
        consistent = sum(map(all, groups.values())) / len(groups)
        return {"accuracy": sum(hits) / len(hits), "consistency": consistent}

    def export(model: VisualReasoner, path: Path) -> Path:
        samples = list(load_nlvr2(root, part))
        told = zip(samples, truths_of(model, samples, setup), strict=True)
        lines = [f"{s.info['identifier']},{bool(truth)}\n" for s, truth in told]
        write_file(path, "".join(lines).encode())
        return path

    def collate(samples: list[Sample], g: torch.Generator) -> Any:
        batch = statements_batch(samples, setup)
        swapped = [replace(sample, image=sample.image_b) for sample in samples]
        left, right = augmented(samples, setup, g), augmented(swapped, setup, g)
        return batch._replace(image_a=left, image_b=right)

    return Recipe(
        name="nlvr2",
        mode="fusion",
        about="NLVR2 statements about two photographs",
        build=lambda backbone, g: VisualReasoner(backbone, g),
        samples=setup.choose(training),
        collate=collate,
        loss=lambda model, batch: model.loss(*batch),
        evaluate=evaluate,
        references=lambda _: {"chance/accuracy": 0.5},
        plan=replace(
            plan_of(setup, len(training), 256, 20, 5, (7e-4, 3e-4), (0.65, 0.85)), weight_decay=0.2
        ),
        drop_path=0.2,
        undecayed=released_no_weight_decay,
        labels=("false", "true"),
        controls={"blind": ("image", "text"), "split": ("val", "test")},
        export=export,
    )


def flickr30k_retrieval(setup: Setup) -> Recipe:
    """Flickr30k, all five captions of every picture as queries and candidates."""
    root = setup.root()
    training = Lines(need(load_flickr30k(root, "train"), "texts", "Flickr30k train"))

    def collate(samples: list[Sample], g: torch.Generator) -> Matched:
        text, real = setup.words([sample.texts[0] for sample in samples])
        place = {sample.key: i for i, sample in enumerate(samples)}
        ids = torch.tensor([place[sample.key] for sample in samples])
        return Matched(augmented(samples, setup, g), text, real, ids)

    def evaluate(model: ImageTextRetriever, limit: int) -> Figures:
        data = need(load_flickr30k(root, setup.split), "texts", f"Flickr30k {setup.split}")
        samples = first(data, limit)
        lines = [(sample.key, text) for sample in samples for text in sample.texts]
        image = embed_images(model, samples, setup)
        text = embed_texts(model, [text for _, text in lines], setup)
        keys = [sample.key for sample in samples]
        return retrieval_figures(image, keys, text, [key for key, _ in lines])

    return Recipe(
        name="flickr30k-retrieval",
        mode="dual",
        about="Flickr30k captions; begin with an *_itc checkpoint, as released",
        build=lambda backbone, g: ImageTextRetriever(backbone, g),
        samples=setup.choose(training),
        collate=collate,
        loss=lambda model, batch: model.loss(*batch),
        evaluate=evaluate,
        references=lambda limit: {"chance/image to text@1": 1 / limit},
        plan=plan_of(setup, len(training), 3072, 20, 5, (1e-4, 5e-5), (0.65, 0.85)),
        drop_path=0.2,
        undecayed=released_no_weight_decay,
        controls={"split": ("val", "test")},
    )


def imagenet(setup: Setup) -> Recipe:
    """ImageNet classes; top-1 and top-5 on val, which has the only labels.

    Departure: crop, mirror, mixup, cutmix and smoothing, but no colour jitter, RandAugment and
    random erasing.
    """
    root, size = setup.root(), setup.config.image_size
    training = need(load_imagenet(root, "train"), "label", "ImageNet train")
    classes = tuple(sorted({str(record.sample.info["wnid"]) for record in training.records}))

    def pixels(images: Sequence[Tensor], crop: str) -> Tensor:
        parts = [to_model(image, size, IMAGENET_MEAN, IMAGENET_STD, crop) for image in images]
        return torch.stack(parts)

    def collate(samples: list[Sample], g: torch.Generator) -> Pictures:
        images = [
            random_flip(random_resized_crop(picture(s), size, g, (0.08, 1.0)), (), g)
            for s in samples
        ]
        return mixed(pixels(images, "squash"), labels_of(samples), len(classes), g)

    def evaluate(model: ImageClassifier, limit: int) -> Figures:
        samples = first(need(load_imagenet(root, "val"), "label", "ImageNet val"), limit)
        logits = [
            model(image).cpu()
            for _, image in in_batches(
                model, samples, lambda part: pixels([picture(s) for s in part], "center")
            )
        ]
        scores, labels = torch.cat(logits), labels_of(samples)
        best = scores.topk(min(5, len(classes)), dim=1).indices
        return {
            "top-1": top1(best[:, 0], labels).accuracy,
            "top-5": (best == labels[:, None]).any(dim=1).float().mean().item(),
        }

    return Recipe(
        name="imagenet",
        mode="vision",
        about=f"ImageNet, {len(classes):,} classes",
        build=lambda backbone, g: ImageClassifier(backbone, len(classes), g),
        samples=setup.choose(training),
        collate=collate,
        loss=lambda model, batch: model.loss(*batch),
        evaluate=evaluate,
        references=lambda _: {"chance/top-1": 1 / len(classes)},
        plan=plan_of(setup, len(training), 1024, 50, 5, (7e-4, 2e-4), (0.65, 0.8)),
        drop_path=0.15 if setup.config.depth <= BASE_DEPTH else 0.25,
        undecayed=released_no_weight_decay,
        final_norm=False,
        labels=classes,
    )


def ade20k(setup: Setup) -> Recipe:
    """ADE20K, 150 classes, mIoU on the validation pictures.

    Departure: pictures are squeezed to a square, 512 pixels instead of 896, and our own small head
    (see `SemanticSegmenter`); the paper's code for it is not released.
    """
    root, size = setup.root(), setup.config.image_size
    training = load_ade20k(root, "training")
    if not len(training):
        raise ValueError(f"{root}: no training pictures")

    def painted(samples: Sequence[Sample]) -> Pictures:
        regions = [s.regions for s in samples if s.regions is not None]
        square = [F.interpolate(r[None, None].float(), (size, size))[0, 0].long() for r in regions]
        return Pictures(setup.pixels([s.image for s in samples]), torch.stack(square))

    def collate(samples: list[Sample], g: torch.Generator) -> Pictures:
        batch = painted(samples)
        turn = torch.rand(len(samples), generator=g) < 0.5
        return Pictures(*(torch.where(_wide(turn, x), x.flip(-1), x) for x in batch))

    def evaluate(model: SemanticSegmenter, limit: int) -> Figures:
        found = []
        for _, batch in in_batches(model, first(load_ade20k(root, "validation"), limit), painted):
            told = model(batch.image).argmax(dim=1)
            found.append(confusion(told.cpu(), batch.labels.cpu(), ADE20K_CLASSES))
        return {"mIoU": mean_iou(torch.cat(found)).accuracy}

    return Recipe(
        name="ade20k",
        mode="vision",
        about="ADE20K scene parsing, 150 classes",
        build=lambda backbone, g: SemanticSegmenter(backbone, ADE20K_CLASSES, g),
        samples=setup.choose(training),
        collate=collate,
        loss=lambda model, batch: model.loss(*batch),
        evaluate=evaluate,
        references=lambda _: {},
        plan=TrainConfig(
            steps=80_000,
            batch_size=16,
            lr=1e-5,
            warmup=1500,
            betas=(0.9, 0.999),
            eps=1e-8,
            layer_decay=0.95,
            clip=None,
            min_lr=0.0,
            save_every=2000,
        ),
        drop_path=0.5 if setup.config.depth > 2 * BASE_DEPTH else 0.2,
        undecayed=released_no_weight_decay,
    )


def plan_of(
    setup: Setup,
    samples: int,
    batch_size: int,
    epochs: int,
    warmup: int,
    lr: tuple[float, float],
    layer_decay: tuple[float, float],
) -> TrainConfig:
    """The released plan for so many samples; lr and layer_decay: for base and for large.

    epochs, warmup: passes over the samples. No clipping, as released.
    """
    large = setup.config.depth > BASE_DEPTH
    each = max(1, min(samples, setup.labels or samples) // batch_size)
    return TrainConfig(
        steps=epochs * each,
        batch_size=batch_size,
        lr=lr[large],
        warmup=warmup * each,
        betas=(0.9, 0.999),
        eps=1e-8,
        clip=None,
        layer_decay=layer_decay[large],
        save_every=1000,
    )


def augmented(samples: Sequence[Sample], setup: Setup, generator: torch.Generator) -> Tensor:
    """A random part of each picture, mirrored half the time, float (B, 3, S, S)."""
    size = setup.config.image_size
    parts = [random_resized_crop(picture(sample), size, generator) for sample in samples]
    return setup.pixels(
        [random_flip(p, s.texts, generator) for p, s in zip(parts, samples, strict=True)]
    )


def mixed(image: Tensor, labels: Tensor, classes: int, generator: torch.Generator) -> Pictures:
    """A batch blended with itself in reverse, by mixup or by cutmix, and its soft labels.

    image: float (B, 3, S, S). labels: int64 (B,). One draw per batch, as released (timm).
    """
    target = F.one_hot(labels, classes).float() * (1 - SMOOTHING) + SMOOTHING / classes
    cut = torch.rand((), generator=generator) < 0.5
    alpha = CUTMIX if cut else MIXUP
    share = _beta(alpha, generator)
    if cut:
        size = image.shape[-1]
        side = round(size * (1 - share) ** 0.5)
        y, x = (int(torch.randint(size, (), generator=generator)) - side // 2 for _ in range(2))
        rows, columns = (slice(max(0, at), max(0, at + side)) for at in (y, x))
        blended = image.clone()
        blended[..., rows, columns] = image.flip(0)[..., rows, columns]
        changed = torch.zeros(size, size)
        changed[rows, columns] = 1
        share = 1 - changed.mean().item()
    else:
        blended = share * image + (1 - share) * image.flip(0)
    return Pictures(blended, share * target + (1 - share) * target.flip(0))


def picture(sample: Sample) -> Tensor:
    """The sample's picture; ValueError when it has none."""
    if sample.image is None:
        raise ValueError(f"{sample.key} has no picture")
    return sample.image


def labels_of(samples: Sequence[Sample]) -> Tensor:
    """Labels int64 (B,); ValueError for a sample without one."""
    labels = [sample.label for sample in samples]
    if None in labels:
        raise ValueError(f"{samples[labels.index(None)].key} has no label")
    return torch.tensor(labels)


def write_json(path: Path, value: object) -> Path:
    """Write what a server takes, whole or not at all."""
    write_file(path, (json.dumps(value) + "\n").encode())
    return path


def _beta(alpha: float, generator: torch.Generator) -> float:
    """A draw from Beta(alpha, alpha), alpha in (0, 1], by Jöhnk's method."""
    while True:
        a, b = (torch.rand(2, generator=generator, dtype=torch.float64) ** (1 / alpha)).tolist()
        if 0 < a + b <= 1:
            return a / (a + b)


def _wide(chosen: Tensor, like: Tensor) -> Tensor:
    return chosen.reshape(-1, *[1] * (like.ndim - 1))
