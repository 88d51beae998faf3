"""Fine-tuning: one pretrained backbone, a recipe's head and data, the loop of `train`.

job = prepare("scenes-vqa", "data_samples/checkpoints/tiny")
model, records = finetune(job, "runs/vqa")
figures = job.recipe.evaluate(model, 1000)
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minibeit3.backbones import Backbone, build_backbone, preset
from minibeit3.batches import generator_of
from minibeit3.checkpoint import backbone_of, check_tokenizer, from_pretrained, save_pretrained
from minibeit3.convert import load_released
from minibeit3.modes import CaptionScorer, ClozeAnswerer, ImageCaptioner
from minibeit3.muon import with_muon
from minibeit3.optimiser import parameter_groups
from minibeit3.precision import pick_device
from minibeit3.recipe import Blind, Figures, Recipe, Setup, Split
from minibeit3.recipes import IMAGE_SIZES, open_recipe
from minibeit3.runlog import Record
from minibeit3.storage import CheckpointError, read_json, write_file
from minibeit3.text_tokenizer import MODEL_FILE, TextTokenizer
from minibeit3.train import TrainConfig, train

NOTES, LABELS = "finetuning.json", "labels.txt"
NOTED = ("labels", "blind", "holdout", "seed")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A recipe and the model that it will train.

    notes: what `evaluate_saved` needs to open the same data again, JSON values.
    """

    recipe: Recipe
    model: Any
    setup: Setup
    notes: Mapping[str, object]

    def plan(
        self, steps: int | None = None, batch_size: int | None = None, lr: float | None = None
    ) -> TrainConfig:
        """The recipe's plan with other numbers; the warm-up keeps its share of the steps."""
        default = self.recipe.plan
        steps = default.steps if steps is None else steps
        return replace(
            default,
            steps=steps,
            warmup=default.warmup * steps // default.steps,
            batch_size=default.batch_size if batch_size is None else batch_size,
            lr=default.lr if lr is None else lr,
            seed=self.setup.seed,
        )


def prepare(
    name: str,
    start: Path | str | None,
    *,
    size: str = "tiny",
    tokenizer: TextTokenizer | None = None,
    labels: int | None = None,
    blind: Blind | None = None,
    holdout: str | None = None,
    split: Split = "test",
    data: Path | str | None = None,
    seed: int = 0,
    image_size: int | None = None,
) -> Job:
    """Open a recipe's data and put its head on a backbone; nothing is written.

    name: one of `recipes.RECIPES`. start: folder of a saved model, or a released .pth, of which the
    backbone is taken; None = a fresh backbone of the preset `size` (the control "from scratch").
    tokenizer: None = the one beside the model, else the lab's. labels, blind, holdout, split, data,
    seed: see `Setup`; the seed also draws the head. image_size: pixels; None = the recipe's, or the
    model's own. ValueError for whatever does not fit.
    """
    backbone, words = open_backbone(start, size, seed, image_size or IMAGE_SIZES.get(name))
    words = tokenizer or words or TextTokenizer.lab()
    check_tokenizer(words, backbone.config)
    setup = Setup(
        config=backbone.config,
        tokenizer=words,
        labels=labels,
        blind=blind,
        holdout=holdout,
        split=split,
        data=None if data is None else Path(data),
        seed=seed,
    )
    recipe = open_recipe(name, setup)
    backbone = fitted(backbone, recipe.drop_path, recipe.final_norm)
    notes = {"recipe": name, "start": str(start) if start else None, "size": size}
    model = recipe.build(backbone, generator_of(seed, 1))
    if start is not None and isinstance(model, ClozeAnswerer | CaptionScorer | ImageCaptioner):
        keep_word_head(model, Path(start), [words.token_ids(label) for label in recipe.labels])
    return Job(
        recipe=recipe,
        model=model,
        setup=setup,
        notes=notes | {field: getattr(setup, field) for field in NOTED},
    )


def finetune(
    job: Job,
    folder: Path | str,
    plan: TrainConfig | None = None,
    *,
    muon: bool | None = None,
    until: int | None = None,
    device: str = "auto",
    on_log: Callable[[Record], None] | None = None,
) -> tuple[Any, list[Record]]:
    """Train the job's model, or go on with the run in `folder`; the model and the run's records.

    plan, muon: None = the recipe's. Parameters as in `train`, which see for what it raises. The
    finished model is saved to `folder`/model, with its tokenizer, labels and notes.
    """
    recipe, folder, plan = job.recipe, Path(folder), plan or job.plan()

    def step(model: nn.Module, batch: Any, _: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        return recipe.loss(model, batch), {}

    source = recipe.source(recipe.samples, plan.part_size, plan.seed, recipe.collate)
    groups = groups_of(job.model, plan, recipe.head_lr, recipe.undecayed(job.model))
    muon = recipe.muon if muon is None else muon
    if muon:
        groups = with_muon(groups, job.model)
    records = train(
        job.model,
        step,
        source,
        plan,
        folder,
        until=until,
        device=device,
        groups=groups,
        on_log=on_log,
    )
    if until is None or until >= plan.steps:
        save_pretrained(job.model, folder / "model", job.setup.tokenizer)
        notes = dict(job.notes) | {"plan": asdict(plan), "muon": muon}
        write_file(folder / "model" / LABELS, "".join(f"{x}\n" for x in recipe.labels).encode())
        write_file(folder / "model" / NOTES, (json.dumps(notes, indent=2) + "\n").encode())
    return job.model, records


def evaluate_saved(
    folder: Path | str,
    *,
    limit: int = 1000,
    split: Split = "test",
    data: Path | str | None = None,
    device: str = "auto",
) -> tuple[Job, Figures]:
    """Figures of the model that `finetune` saved, on the data that its notes name.

    limit: samples of each split. data: the user's data, for recipes that read some.
    CheckpointError for a folder without notes; ValueError when the recipe's classes are others.
    """
    folder = saved_folder(folder)
    notes = read_json(folder / NOTES)
    missing = {"recipe", *NOTED} - notes.keys()
    if missing:
        raise CheckpointError(f"{folder / NOTES} lacks {sorted(missing)}: save the model again")
    model = from_pretrained(folder).to(pick_device(device))
    setup = Setup(
        config=backbone_of(model).config,
        tokenizer=TextTokenizer.from_pretrained(folder),
        split=split,
        data=None if data is None else Path(data),
        **{field: notes[field] for field in NOTED},
    )
    recipe = open_recipe(notes["recipe"], setup)
    names = tuple((folder / LABELS).read_text("utf-8").splitlines())
    if names != recipe.labels:
        raise ValueError(
            f"{folder} was trained for {len(names)} classes {list(names[:3])}..., the data have "
            f"{len(recipe.labels)} {list(recipe.labels[:3])}...: give the data it was trained on"
        )
    job = Job(recipe=recipe, model=model, setup=setup, notes=notes)
    with torch.inference_mode():
        return job, recipe.evaluate(model, limit)


def saved_folder(folder: Path | str) -> Path:
    """The folder with the notes: the given one or `model` in it."""
    for place in (Path(folder), Path(folder) / "model"):
        if (place / NOTES).is_file():
            return place
    raise CheckpointError(f"{folder} holds no {NOTES}: name a folder that finetune finished")


def open_backbone(
    start: Path | str | None, size: str, seed: int, image_size: int | None = None
) -> tuple[Backbone, TextTokenizer | None]:
    """The backbone of a saved or released model with its tokenizer, or a fresh one without.

    image_size: pixels, to interpolate the image positions to; None = as it is.
    """
    if start is None:
        config = preset(size)
        config = replace(config, image_size=image_size or config.image_size)
        return build_backbone(config, generator_of(seed)), None
    start = Path(start)
    if start.is_file():
        return backbone_of(load_released(start, image_size=image_size)), None
    folder = model_folder(start)
    words = TextTokenizer.from_pretrained(folder) if (folder / MODEL_FILE).exists() else None
    return backbone_of(from_pretrained(folder, image_size=image_size)), words


def model_folder(start: Path) -> Path:
    """The folder itself or `model` in it; CheckpointError when neither holds a saved model."""
    folder = start if (start / "config.json").is_file() else start / "model"
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{start} holds no saved model: name a run's folder or a .pth file")
    return folder


def keep_word_head(
    model: ClozeAnswerer | CaptionScorer | ImageCaptioner,
    start: Path,
    answers: Sequence[Sequence[int]],
) -> None:
    """Let a model that guesses words go on with the pretrained head for them, if `start` has one.

    answers: ids of the pieces of each answer, for models that answer. The released pretrained
    checkpoints hold the head under the name that captioning reads.
    """
    saved = load_released(start) if start.is_file() else from_pretrained(model_folder(start))
    head = getattr(saved, "mlm_head", None)
    config = model.backbone.config
    if not isinstance(head, nn.Linear) or head.weight.shape != (config.vocab_size, config.width):
        return
    if isinstance(model, ClozeAnswerer):
        model.start_from(head, answers)
    else:
        model.mlm_head.load_state_dict(head.state_dict())


def fitted(backbone: Backbone, drop_path: float, final_norm: bool) -> Backbone:
    """The same weights with another rate of stochastic depth, and maybe without the last norm."""
    norm = final_norm and backbone.config.final_norm
    with torch.device("meta"):
        other = build_backbone(replace(backbone.config, drop_path=drop_path, final_norm=norm))
    kept = other.state_dict().keys()
    weights = {name: value for name, value in backbone.state_dict().items() if name in kept}
    other.load_state_dict(weights, assign=True)
    return other.requires_grad_()


def groups_of(
    model: nn.Module, plan: TrainConfig, head_lr: float, undecayed: set[str] | None = None
) -> list[dict[str, Any]]:
    """Parameter groups of the plan; `head.*` learns `head_lr` times as fast (released code)."""
    groups = parameter_groups(model, plan.weight_decay, plan.layer_decay, undecayed)
    if head_lr == 1:
        return groups
    head = {id(p) for name, p in model.named_parameters() if name.startswith("head")}
    split = []
    for group in groups:
        inside = [p for p in group["params"] if id(p) in head]
        outside = [p for p in group["params"] if id(p) not in head]
        split += [group | {"params": inside, "scale": group["scale"] * head_lr}] if inside else []
        split += [group | {"params": outside}] if outside else []
    return split
