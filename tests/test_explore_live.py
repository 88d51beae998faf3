"""Live explorers: the kernel answers by number, states follow each other, pages hold everything."""

import base64
import json
import re
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_comm import Sent, from_browser, sent

from minibeit3 import build_backbone, preset
from minibeit3.explore import AttentionExplorer, MaskExplorer
from minibeit3.explore.core import to_png
from minibeit3.explore.fillin import FillIn
from minibeit3.explore.flow import unpacked
from minibeit3.explore.masks import bits_of
from minibeit3.masking import blockwise_mask
from minibeit3.objective import MaskedDataModel
from minibeit3.text_tokenizer import TextTokenizer

__all__ = ["sent"]  # the fixture

RANDOM = np.random.default_rng(0)
# Blocks: to find a palette for noise takes seconds.
BLOCKS = RANDOM.integers(0, 255, (8, 8, 3), dtype=np.uint8)
PICTURE = BLOCKS.repeat(8, axis=0).repeat(8, axis=1)
WORDS = ["<s>", "</script><b>", "cat", "</s>"]
TOKENIZER = TextTokenizer.lab()


@cache
def backbone(seed: int = 0) -> Any:
    return build_backbone(preset("tiny"), torch.Generator().manual_seed(seed))


def attention(**more: Any) -> Any:
    image, ids = torch.zeros(1, 3, 64, 64), torch.tensor([[0, 5, 6, 2]])
    return AttentionExplorer(backbone(), PICTURE, image, ids, WORDS, **more)


def fill_in() -> FillIn:
    image = torch.from_numpy(PICTURE.transpose(2, 0, 1).copy())
    torch.manual_seed(0)
    model = MaskedDataModel(backbone())
    return FillIn(model, TOKENIZER, image, "a red circle", lambda x: torch.arange(64)[None])


def ask(explorer: Any, key: str | None, view: dict | None = None, number: int = 1) -> tuple:
    from_browser(explorer.live, {"ask": {"number": number, "key": key, "view": view}})
    return explorer.live.got, explorer.live.data


def test_a_layer_goes_to_the_browser_as_a_byte_per_weight_and_comes_back_exact_enough(
    sent: Sent,
) -> None:
    looks = attention(other=backbone(1))
    sent.clear()
    got, data = ask(looks, "attention|3", number=7)
    assert (got["number"], got["key"]) == (7, "attention|3")
    assert len(data) == 2 * 4 * 69 * (69 + 4)
    half = len(data) // 2
    for one, part in zip(looks.inside, (data[:half], data[half:]), strict=True):
        true = one.patterns[2].reshape(-1, 69)
        assert np.abs(unpacked(part, 69) - true).max() <= true.max() / 509
    (answer,) = [(c, buffers) for c, buffers in sent if "got" in c.get("state", {})]
    assert answer[0]["buffer_paths"] == [["data"]] and bytes(answer[1][0]) == data


def test_a_layer_of_a_base_sized_model_takes_less_than_a_megabyte() -> None:
    from minibeit3.explore.flow import packed

    assert len(packed(RANDOM.random((12, 261, 261)))) < 1_000_000


@pytest.mark.parametrize("key", ["attention|0", "attention|7", "rollout|-1", "relevance|69", "x|1"])
def test_a_question_out_of_range_is_told_and_not_raised(sent: Sent, key: str) -> None:
    got, data = ask(attention(), key)
    assert got["error"] and data == b""


def test_the_browsers_view_reaches_the_saved_picture_and_the_plain_controls(sent: Sent) -> None:
    looks = attention()
    view = {**looks.twin.view(), "query": 0, "layer": 2, "head": 3}
    ask(looks, None, view)
    assert (looks.token.value, looks.layer.value, looks.head.value) == (0, 2, 3)
    assert repr(looks).startswith("AttentionExplorer: [CLS] attends")
    looks.layer.value = 5
    assert looks.live.view["layer"] == 5 and looks.live.view["head"] == 3


def test_every_method_layer_head_and_region_is_drawn_with_its_sentence() -> None:
    inside = np.zeros((64, 64), dtype=bool)
    inside[:32] = True
    looks = attention(other=backbone(1), regions={"the <b>top": inside})
    for method in looks.method.options:
        for layer, head, token, region in ((1, -1, 0, -1), (6, 3, 68, 0), (3, 0, 30, 0)):
            looks.method.value, looks.layer.value = method, layer
            looks.head.value, looks.token.value, looks.region.value = head, token, region
            said = repr(looks)
            assert "before: " in said and "after: " in said
            assert ("lies on the <b>top, which covers 50.0%" in said) == (region == 0)
            assert (" owes " in said) == (method == "relevance")
    assert "<b>" not in looks._repr_mimebundle_()["text/html"]


def test_own_picture_and_caption_replace_the_first_and_mistakes_are_told(tmp_path: Path) -> None:
    looks = attention(tokenizer=TOKENIZER)
    file = tmp_path / "own.png"
    file.write_bytes(to_png(255 - PICTURE))
    before = repr(looks)
    looks.own.path.value = str(file)
    assert looks.own.said.value == "" and repr(looks) != before
    looks.own.text.value = "two cats"
    assert looks.words[0] == "<s>" and "cat" in "".join(looks.words)
    looks.own.path.value = str(tmp_path / "none.png")
    assert "none.png" in looks.own.said.value
    content = {"name": "a", "type": "", "size": 9, "content": b"no picture"}
    looks.own.upload.set_state({"value": [content | {"last_modified": 0}]})
    assert "cannot read image" in looks.own.said.value
    with pytest.raises(ValueError, match="tokenizer="):
        attention().use(text="a cat")


def test_words_that_do_not_match_the_text_and_unlike_models_are_refused() -> None:
    with pytest.raises(ValueError, match="3 words for 4"):
        AttentionExplorer(
            backbone(), PICTURE, torch.zeros(1, 3, 64, 64), torch.tensor([[0, 5, 6, 2]]), WORDS[1:]
        )
    deep = replace(preset("tiny"), depth=7)
    small = build_backbone(deep, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="like sizes"):
        attention(other=small)


def test_the_kernel_draws_the_masks_of_the_package_and_guesses_what_is_hidden(sent: Sent) -> None:
    masks = MaskExplorer(PICTURE, fill=fill_in())
    got, _ = ask(masks, "mask|block-wise|0.25|3|0.5|9")
    wanted = blockwise_mask(8, 16, torch.Generator().manual_seed(9), 3, (0.5, 2))
    assert got["hidden"] == bits_of(wanted)
    bits = "1" + "0" * 62 + "1"
    got, _ = ask(masks, f"guess|{bits}|010", number=2)
    assert [row["place"] for row in got["patches"]] == [0, 63]
    assert [row["truth"] for row in got["patches"]] == ["0", "63"]
    (word,) = got["words"]
    assert (word["place"], word["truth"]) == (1, "red") and len(word["best"]) == 5
    chances = [chance for _, chance in word["best"]]
    assert chances == sorted(chances, reverse=True) and 0 < sum(chances) <= 1
    for key in ("guess|1|010", "mask|block-wise|0.95|3|0.5|9", "mask|x|0.2|3|0.5|9", "rest"):
        assert "error" in ask(masks, key, number=3)[0]


def test_a_brushed_mask_is_kept_until_the_settings_change(sent: Sent) -> None:
    masks = MaskExplorer(PICTURE, words=["a", "cat"])
    bits = "1" * 5 + "0" * 59
    ask(masks, None, {**masks.twin.view(), "brushed": bits, "words": "01"})
    assert bits_of(masks.hidden()) == bits and masks.words[1].value
    assert "5 of 64 patches hidden. 1 of 2 words hidden: a [mask]" in repr(masks)
    masks.show.value = "distance"
    assert bits_of(masks.hidden()) == bits
    masks.seed.value = 3
    assert int(masks.hidden().sum()) == 26 and masks.twin.live.view["brushed"] == ""


def test_guesses_do_not_see_what_is_hidden() -> None:
    fill = fill_in()
    hidden = torch.zeros(8, 8, dtype=torch.bool)
    hidden[2, 3] = True
    guess = fill.guess(hidden, [False, True, False])
    changed = fill.image.clone()
    changed[..., 16:24, 24:32] = -1
    fill.image, fill.ids[0, 2] = changed, 77
    again = fill.guess(hidden, [False, True, False])
    assert guess["words"][0]["best"] == again["words"][0]["best"]
    assert guess["patches"][0]["best"] == again["patches"][0]["best"]


def test_own_picture_and_caption_reach_the_model_that_guesses() -> None:
    masks = MaskExplorer(PICTURE, fill=fill_in())
    masks.use(text="blue stars")
    assert [b.description for b in masks.words] == masks.fill.words  # type: ignore[union-attr]
    plain = MaskExplorer(PICTURE, words=["a"])
    plain.use(image=to_png(255 - PICTURE), text="two words")
    assert [b.description for b in plain.words] == ["two", "words"]
    assert np.abs(plain.picture[:8, :8].mean() - (255 - PICTURE[:2, :2]).mean()) < 60


def stored(page: str) -> dict[str, Any]:
    found = re.search(r"^const STORE = (.*);$", page, re.MULTILINE)
    assert found
    return json.loads(found[1])


def test_an_exported_page_holds_every_answer_and_reaches_for_nothing(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    attention().export_html(file)
    page = file.read_text()
    assert page.count("</script>") == 1 and "<b>" not in page
    assert not re.search(r"""(src|href)=["']?(https?:|//)|fetch\(|import """, page)
    answers = stored(page)["answers"]
    assert {*answers} == {
        *(f"{name}|{layer}" for name in ("attention", "rollout") for layer in range(1, 7)),
        *(f"relevance|{token}" for token in range(69)),
    }
    assert len(base64.b64decode(answers["attention|1"][1])) == 4 * 69 * 73


def test_an_exported_mask_page_holds_the_masks_of_its_settings(tmp_path: Path) -> None:
    masks = MaskExplorer(PICTURE, fill=fill_in())
    masks.export_html(tmp_path / "page.html")
    store = stored((tmp_path / "page.html").read_text())
    assert store["spec"]["fixed"] == ["block", "aspect"]
    assert len(store["answers"]) == 2 * 19 * 21 + 1
    key = "mask|random|0.9|5|0.3|20"
    assert store["answers"][key][0]["hidden"].count("1") == 58


def test_without_anywidget_the_plain_controls_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert attention().live is not None
    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "minibeit3.explore.browser", raising=False)
    looks = attention()
    assert looks.live is None and looks.view.children[0] is looks.shell.view
    looks.layer.value = 1
    assert "application/vnd.jupyter.widget-view+json" in looks._repr_mimebundle_()
