"""What pretraining learned, on data that it never saw: every probe of one run in one file.

    python -m minibeit3.probes RUN_FOLDER --visual-tokenizer FOLDER --out results/NAME.json

Words of captions by picture and against the exact ceiling, visual codes with and without their
text, texts alone against counts of words. Scenes of shapes that a holdout tests are new, but
pretraining keeps none of their compositions out: test against control shows how hard they are, not
how far the model generalises. Vendors, concepts and compositions of emoji were never seen.
"""

import argparse
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from minibeit3 import runfolder
from minibeit3.backbones import build_backbone, preset
from minibeit3.batches import order
from minibeit3.checkpoint import from_pretrained
from minibeit3.data.emoji import Emoji
from minibeit3.data.glosses import PlainTexts
from minibeit3.data.sample import Sample
from minibeit3.data.scene_captions import SceneCaptions
from minibeit3.objective import MaskedDataModel
from minibeit3.pretrain import KnownEmoji
from minibeit3.probes_codes import TEXTS, Codes, code_baselines, masked_codes
from minibeit3.probes_score import Score
from minibeit3.probes_text import masked_text, text_baselines
from minibeit3.probes_words import PICTURES, exact, masked_words, word_ceiling
from minibeit3.provenance import provenance, write_results
from minibeit3.runlog import read_metrics
from minibeit3.text_tokenizer import TextTokenizer
from minibeit3.visual_codes import open_codes

HOLDOUTS = ("combo", "relation", "count", "size")
MORE_HIDDEN = (0.6, 0.8, 0.9)  # of the patches: pretraining hides 0.4
Samples = dict[str, list[Sample]]


def probe(
    folder: Path | str,
    codes: Codes,
    *,
    samples: int = 200,
    texts: int = 600,
    ngram_texts: int = 60_000,
    seed: int = 0,
    size: str = "tiny",
) -> dict[str, Any]:
    """All figures of the run in `folder`; also works on a run that still goes on.

    codes: the visual tokenizer that the run was trained with. samples: per split, half as many in
    each split of the scenes' holdouts. texts: held-out glosses. ngram_texts: training glosses that
    the 5-gram counts. size: preset of a run that has not saved its model yet. Raises ValueError
    for a folder with neither model nor checkpoint.
    """
    began = time.process_time()
    model, step = open_model(Path(folder), size)
    tokenizer = TextTokenizer.lab()
    side = model.backbone.config.image_size
    scenes, emoji = scene_splits(samples, side, tokenizer, seed), emoji_splits(samples, side, seed)
    words: dict[str, dict[str, dict[str, Score]]] = {}
    for name, split in (scenes | emoji).items():
        words[name] = {p: masked_words(model, split, tokenizer, picture=p, seed=seed)
                       for p in PICTURES}  # fmt: skip
        if name in scenes:
            words[name] |= word_ceiling(split, tokenizer, seed=seed)
    training = {
        "scenes": take(SceneCaptions("train", samples, side), samples, seed),
        "emoji": emoji["emoji/trained"],
    }
    patches: dict[str, dict[str, Score]] = {}
    for name, split in {"scenes/test": scenes["scenes/test"], **emoji}.items():
        known = training[name.partition("/")[0]]
        patches[name] = {t: masked_codes(model, split, tokenizer, codes, text=t, seed=seed)
                         for t in TEXTS}  # fmt: skip
        patches[name] |= code_baselines(split, known, codes, side, seed=seed)
    sparse = {
        f"{ratio:g}": {
            t: masked_codes(model, scenes["scenes/test"], tokenizer, codes, ratio, t, seed)
            for t in TEXTS
        }
        for ratio in MORE_HIDDEN
    }
    told = first_texts(PlainTexts("test"), texts, seed)
    lines = text_baselines(
        told, first_texts(PlainTexts("train"), ngram_texts, seed), tokenizer, seed=seed
    )
    return {
        "what": "masked words, codes and texts of a pretrained model on held-out data",
        "goals": goals(words["scenes/test"], patches),
        "words": _plain(words),
        "codes": _plain(patches),
        "codes_by_share_hidden": {"scenes/test": _plain(sparse)},
        "texts": _plain({"model": masked_text(model, told, tokenizer, seed=seed), **lines}),
        "seeds": [seed],
        "budget": budget(Path(folder), step),
        "probe_cpu_s": time.process_time() - began,
    }


def open_model(folder: Path, size: str = "tiny") -> tuple[MaskedDataModel, int | None]:
    """The saved model of a run, else its newest checkpoint with its step; eval mode, on the CPU."""
    for place in (folder, folder / "model"):
        if (place / "config.json").exists():
            model = from_pretrained(place)
            if not isinstance(model, MaskedDataModel):
                raise ValueError(f"{place} holds a {type(model).__name__}: name a pretrained model")
            return model, None
    state = runfolder.load_newest(folder)
    if state is None:
        raise ValueError(f"{folder} holds neither a model nor a checkpoint: name a run's folder")
    model = MaskedDataModel(build_backbone(preset(size)))
    model.load_state_dict(state["model"])
    return model.eval(), state["step"]


def scene_splits(n: int, size: int, tokenizer: TextTokenizer, seed: int) -> Samples:
    """The scenes test split, then test and control of every holdout; captions that are `exact`."""
    wanted = [("scenes/test", "test", None, n)]
    for holdout in HOLDOUTS:
        wanted += [(f"scenes/{holdout}/{s}", s, holdout, half(n)) for s in ("test", "control")]
    return {
        name: [
            sample
            for sample in take(SceneCaptions(split, 2 * k, size, holdout=holdout), 2 * k, seed)
            if exact(sample, tokenizer)
        ][:k]
        for name, split, holdout, k in wanted
    }


def half(n: int) -> int:
    """Samples of a side split: half as many, two at least, so that they can be exchanged."""
    return max(2, n // 2)


def emoji_splits(n: int, size: int, seed: int) -> Samples:
    """Emoji of training, and of the three holdouts, on coloured grounds as in training."""
    trained = KnownEmoji(size)

    def held(split: str, holdout: str) -> list[Sample]:
        return take(Emoji(split=split, holdout=holdout, size=size, background="random"), n, seed)

    return {
        "emoji/trained": take(trained, n, seed),
        "emoji/style": held("test", "style"),
        "emoji/concept": held("test", "concept"),
        "emoji/composition": held("test", "composition"),
        "emoji/composition-control": held("control", "composition"),
    }


def take(data: Dataset[Sample], n: int, seed: int) -> list[Sample]:
    """At most n samples in random order."""
    total = len(data)  # pyright: ignore[reportArgumentType]
    return [data[i] for i in order(total, seed, 0)[:n]]


def first_texts(data: PlainTexts, n: int, seed: int) -> list[str]:
    """At most n texts in random order."""
    return [sample.texts[0] for sample in take(data, n, seed)]


def goals(
    words: dict[str, dict[str, Score]], patches: dict[str, dict[str, Score]]
) -> dict[str, dict[str, float | bool]]:
    """The aims of pretraining, judged: at the goal or on its good side is met.

    Without the picture even the best guess of all words is far above 35 %, because captions are
    regular; so that goal is judged on content words, which the picture decides.
    """
    blind = max(words[picture]["content"].accuracy for picture in PICTURES[1:])
    found = {
        "words_with_picture_of_ceiling": (
            words["right"]["all"].accuracy / words["seen"]["all"].accuracy,
            0.93,
        ),
        "content_words_without_picture": (blind, 0.35),
    }
    for name, scores in patches.items():
        gain = scores["right"].accuracy - scores["none"].accuracy
        found[f"codes_gain_of_text/{name}"] = (gain, 0.10)
    return {
        name: {
            "value": value,
            "goal": goal,
            "met": value <= goal if "without" in name else value >= goal,
        }
        for name, (value, goal) in found.items()
    }


def budget(folder: Path, step: int | None) -> dict[str, object]:
    """Steps, samples and seconds of the run, as far as its log tells; metrics of the last step.

    wall_s: from the mean speed that the last record names, so a pause between two sessions is not
    in it. The log holds no processor time.
    """
    run = folder if (folder / "metrics.jsonl").exists() else folder.parent
    records = read_metrics(run)
    records = [r for r in records if step is None or r["step"] <= step]
    if not records:
        return {"steps": step}
    last, state = records[-1], runfolder.load_newest(run)
    size = state["config"]["batch_size"] if state else None
    seen = size and last["step"] * size
    spent = seen and seen / last["samples_per_second"]
    return {
        "steps": last["step"],
        "batch_size": size,
        "samples": seen,
        "wall_s": spent,
        "last_record": last,
    }


def _plain(scores: Any) -> Any:
    """Scores as dicts, whatever holds them, for JSON."""
    if isinstance(scores, Score):
        return scores._asdict()
    return {name: _plain(part) for name, part in scores.items()}


def main(arguments: Iterable[str] | None = None) -> None:
    """Command line: probe a run and write its JSON."""
    given_line = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="minibeit3.probes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="a run, or a saved model")
    parser.add_argument("--visual-tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=200, help="per split")
    parser.add_argument("--texts", type=int, default=600)
    parser.add_argument("--ngram-texts", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--preset", default="tiny", help="of a run without a saved model")
    given = parser.parse_args(given_line)
    result = probe(
        given.folder,
        open_codes(given.visual_tokenizer).tokens,
        samples=given.samples,
        texts=given.texts,
        ngram_texts=given.ngram_texts,
        seed=given.seed,
        size=given.preset,
    )
    write_results(given.out, result | provenance("-m minibeit3.probes", given_line))


if __name__ == "__main__":
    main()
