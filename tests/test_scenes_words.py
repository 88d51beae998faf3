"""Hidden words: the posterior is what counting over generated captions says."""

from collections import Counter
from random import Random

import pytest

from minibeit3.data.scene_captions import SceneCaptions
from minibeit3.data.scene_text import caption_distribution, draw_caption
from minibeit3.data.scene_words import HIDDEN, masked_word_ceiling, word_posterior
from minibeit3.data.scenes import SHAPES, Scene, Thing

SCENE = Scene(
    "shapes",
    "white",
    (Thing("star", "red", "small", 0.2, 0.5), Thing("ring", "blue", "large", 0.7, 0.5)),
)


def test_a_picture_decides_every_attribute_it_shows() -> None:
    posterior = word_posterior("a large [mask] ring and a [mask] red star", SCENE)
    assert posterior == [{"blue": 1.0}, {"small": 1.0}]
    (noun,) = word_posterior("one [mask]", SCENE)  # not a colour: those take three words
    assert noun == {"star": 0.5, "ring": 0.5}


def test_without_a_picture_unseen_attributes_are_uniform_over_what_is_possible() -> None:
    (kind,) = word_posterior("the [mask] is left of the ring")
    assert set(kind) == set(SHAPES.kinds) - {"ring"}
    assert max(kind.values()) == pytest.approx(0.2, abs=1e-9)
    (colour,) = word_posterior("a large [mask] star")
    assert set(colour) == set(SHAPES.colours)
    assert max(colour.values()) == pytest.approx(1 / 8, abs=1e-9)
    (second,) = word_posterior("a large red star and a small [mask] ring")
    for chance in second.values():  # "red" again is another pattern, and as likely
        assert chance == pytest.approx(1 / 8, abs=0.02)
    side, of = word_posterior("the star is [mask] [mask] the ring")
    assert side == pytest.approx({"left": 0.5, "right": 0.5}) and of == {"of": pytest.approx(1)}


def test_the_posterior_is_the_frequency_among_captions_of_the_scene() -> None:
    data, rng = SceneCaptions("val", 30), Random(0)
    for i in range(30):
        scene = data.scene(i)[0]
        visible = draw_caption(rng, scene)[1].split()
        visible[-1] = visible[1] = HIDDEN
        chances = Counter()
        for caption, chance in caption_distribution(scene).items():
            words = caption.split()
            if len(words) == len(visible) and all(
                v in (HIDDEN, w) for v, w in zip(visible, words, strict=True)
            ):
                chances[words[1]] += chance  # type: ignore[assignment]
        first = word_posterior(" ".join(visible), scene)[0]
        assert first == pytest.approx({w: c / chances.total() for w, c in chances.items()})


def test_the_prior_agrees_with_counting_generated_captions() -> None:
    data = SceneCaptions("train", 6000)
    captions = [data.scene(i)[2] for i in range(6000)]
    counts = [c.split() for c in captions if c.split()[0] in ("two", "three", "four")]
    counts = [words for words in counts if len(words) == 2]
    seen = Counter(words[0] for words in counts)
    (number,) = word_posterior("[mask] circles")
    for word in ("two", "three", "four"):
        assert number[word] == pytest.approx(seen[word] / len(counts), abs=0.05)
    lists = [c.split() for c in captions if c.startswith(("a ", "an ")) and len(c.split()) == 9]
    large = sum(words[1] == "large" for words in lists) / len(lists)
    (size,) = word_posterior("a [mask] red star and a small blue ring")
    small = [words for words in lists if words[6] == "small"]
    expected = sum(words[1] == "large" for words in small) / len(small)
    assert size["large"] == pytest.approx(expected, abs=0.08) and large > expected


def test_the_picture_raises_the_ceiling() -> None:
    data = SceneCaptions("val", 60)
    items = [(data.scene(i)[0], data.scene(i)[2]) for i in range(60)]
    seen, blind = masked_word_ceiling(items, 0.5, Random(0))
    assert blind + 0.2 < seen <= 1
    assert masked_word_ceiling(items, 0.15, Random(0))[0] > seen  # more words to go by


def test_impossible_words_are_named() -> None:
    with pytest.raises(ValueError, match="fits no caption of this scene"):
        word_posterior("a large [mask] cross", SCENE)
    with pytest.raises(ValueError, match="fits no caption of the shapes world"):
        word_posterior("the the [mask]")
    with pytest.raises(ValueError, match="no word was hidden"):
        masked_word_ceiling([(SCENE, "one star")], 0.0, Random(0))
    assert word_posterior("one star", SCENE) == []
