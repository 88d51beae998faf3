"""The committed golden values: the same names give the same scenes, words and pixels everywhere.

After a wanted change run `python tests/test_scenes_golden.py` and say in the commit what changed.
"""

import json
from hashlib import sha256

from minibeit3.data.paths import data_root
from minibeit3.data.scene_captions import SceneCaptions
from minibeit3.data.scene_pairs import BindingPairs, SceneStatements
from minibeit3.data.scene_vqa import SceneVQA
from minibeit3.data.scenes import SHAPES, Scene, draw, to_dict

GOLDEN = data_root() / "shapes/golden.json"


def fingerprint(scene: Scene, size: int = 64) -> dict[str, object]:
    """Hashes of a scene as data and as pixels."""
    text = json.dumps(to_dict(scene), sort_keys=True)
    return {
        "scene": sha256(text.encode()).hexdigest(),
        "pixels": sha256(draw(scene, size).tobytes()).hexdigest(),
    }


def golden() -> dict[str, list[dict[str, object]]]:
    """Captions, questions, statements and binding pairs of the test split."""
    told = SceneCaptions("test", 16)
    asked = SceneVQA("test", 16)
    stated = SceneStatements("test", 8)
    bound = BindingPairs("test", 4)
    items: dict[str, list[dict[str, object]]] = {}
    items["captions"] = [
        fingerprint(scene) | {"grammar": grammar, "caption": caption}
        for scene, grammar, caption in map(told.scene, range(16))
    ]
    items["questions"] = [
        fingerprint(scene) | {"question": question.ask(SHAPES), "answer": answer}
        for question, answer, scene, _ in map(asked.pose, range(16))
    ]
    items["statements"] = [
        {"statement": text, "truth": truth, "pictures": [fingerprint(scene) for scene in scenes]}
        for _, text, truth, _, scenes in map(stated.pose, range(8))
    ]
    items["binding"] = [
        {"captions": list(captions), "pictures": [fingerprint(scene) for scene in scenes]}
        for _, captions, scenes in map(bound.pose, range(4))
    ]
    return items


def test_items_equal_the_committed_golden_values() -> None:
    assert golden() == json.loads(GOLDEN.read_text())


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden(), indent=1) + "\n")
