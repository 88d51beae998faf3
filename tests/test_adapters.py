"""The adapters read the public layouts of data_samples/fixtures, the converters write unilm's."""

import gzip
import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import sentencepiece
import torch
from PIL import Image
from torch.utils.data import DataLoader

from minibeit3.data.captions import load_coco, load_flickr30k, load_nocaps
from minibeit3.data.class_folders import load_ade20k, load_imagenet
from minibeit3.data.folder import load_folder
from minibeit3.data.index_jsonl import FILES, load_index, make_index
from minibeit3.data.nlvr2 import load_nlvr2
from minibeit3.data.packaged import FashionMNIST, load_easy_vqa, load_tuxpaint
from minibeit3.data.paths import data_root
from minibeit3.data.records import Records
from minibeit3.data.tar_shards import load_tar_shards
from minibeit3.data.vqav2 import answer_vocabulary, load_vqav2, normalise, soft_scores
from minibeit3.text_tokenizer import TextTokenizer

FIXTURES = data_root() / "fixtures"
TOOL = Path(__file__).resolve().parents[1] / "tools" / "build_fixtures.py"


def released_model() -> bytes:
    """A SentencePiece model in the released id order, over the words of the fixtures."""
    images = json.loads((FIXTURES / "coco/dataset_coco.json").read_text())["images"]
    lines = [sentence["raw"] for image in images for sentence in image["sentences"]]
    lines += ["Is there a circle? How many shapes are there? One of the images shows a square."]
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 5),
        model_writer=out,
        vocab_size=80,
        minloglevel=2,
        num_threads=1,
        hard_vocab_limit=False,
    )
    return out.getvalue()


MODEL = released_model()
TOKENIZER = TextTokenizer.from_bytes(MODEL)


def segment(text: str) -> list[int]:
    """Token ids as the released tokenizer gives them, without our wrapper."""
    plain = sentencepiece.SentencePieceProcessor()
    plain.LoadFromSerializedProto(MODEL)
    return [3 if piece == 0 else piece + 1 for piece in plain.encode(text, out_type=int)]


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def raw(path: str) -> dict[str, list[dict]]:
    return json.loads((FIXTURES / path).read_text())


LOADED: dict[str, Records] = {
    "coco train": load_coco(FIXTURES / "coco", "train"),
    "coco val": load_coco(FIXTURES / "coco", "val"),
    "flickr30k test": load_flickr30k(FIXTURES / "flickr30k", "test"),
    "nocaps val": load_nocaps(FIXTURES / "nocaps", "val"),
    "vqav2 train": load_vqav2(FIXTURES / "vqav2", "train"),
    "vqav2 test": load_vqav2(FIXTURES / "vqav2", "test"),
    "nlvr2 train": load_nlvr2(FIXTURES / "nlvr2", "train"),
    "nlvr2 dev": load_nlvr2(FIXTURES / "nlvr2", "dev"),
    "imagenet train": load_imagenet(FIXTURES / "imagenet", "train"),
    "ade20k training": load_ade20k(FIXTURES / "ade20k", "training"),
    "tar": load_tar_shards(FIXTURES / "cc3m", on_bad="skip", max_bad=0.2),
    "folder jsonl": load_folder(FIXTURES / "folder/jsonl"),
    "folder csv": load_folder(FIXTURES / "folder/csv"),
    "folder txt": load_folder(FIXTURES / "folder/txt"),
}


@pytest.mark.parametrize("name", LOADED)
def test_every_sample_has_a_decoded_picture_and_a_unique_key(name: str) -> None:
    data = LOADED[name]
    assert len(data) > 0 and len({sample.key for sample in data}) == len(data)
    for sample in data:
        assert sample.image is not None
        assert sample.image.shape == (3, 32, 40) and sample.image.dtype == torch.uint8
    assert data[-1].key == list(data)[-1].key


def test_workers_give_the_same_samples_in_the_same_order() -> None:
    data = LOADED["coco train"]
    loader = DataLoader(data, batch_size=None, num_workers=2)
    assert [sample.key for sample in loader] == [sample.key for sample in data]


def test_fixtures_are_what_their_script_draws(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(TOOL), str(tmp_path / "again")], check=True)
    for made in sorted((tmp_path / "again").rglob("*.*")):
        kept = FIXTURES / made.relative_to(tmp_path / "again")
        if made.suffix in (".json", ".jsonl", ".csv", ".txt"):
            assert made.read_bytes() == kept.read_bytes(), kept
        elif made.suffix != ".tar":
            pixels = [
                torch.tensor(list(Image.open(p).convert("RGB").tobytes())) for p in (made, kept)
            ]
            assert (pixels[0] - pixels[1]).abs().max() <= 8, kept  # JPEG libraries may differ
    names = [p.relative_to(FIXTURES) for p in FIXTURES.rglob("*.*")]
    assert names and all((tmp_path / "again" / name).exists() for name in names)


def test_coco_train_is_karpathy_train_and_restval() -> None:
    data = LOADED["coco train"]
    assert {sample.info["split"] for sample in data} == {"train", "restval"}
    assert data[0].key == "coco/57870" and len(data[0].texts) == 5
    assert data[0].info["image_path"] == "train2014/COCO_train2014_000000057870.jpg"


def test_nocaps_test_has_no_captions() -> None:
    assert len(LOADED["nocaps val"][0].texts) == 5
    assert all(not sample.texts for sample in load_nocaps(FIXTURES / "nocaps", "test"))


def test_retrieval_index_has_the_released_keys_and_a_running_image_number(tmp_path: Path) -> None:
    for task, name in (("coco_retrieval", "coco"), ("flickr30k", "flickr30k")):
        make_index(task, FIXTURES / name, tmp_path, TOKENIZER)
        images = raw(f"{name}/dataset_{name}.json")["images"]
        for split in ("train", "val", "test"):
            wanted = ("train", "restval") if split == "train" else (split,)
            expected, number = [], 0
            for image in images:
                if image["split"] in wanted:
                    folder = image.get("filepath", "flickr30k-images")
                    for sentence in image["sentences"]:
                        row = {
                            "image_path": f"{folder}/{image['filename']}",
                            "text_segment": segment(sentence["raw"]),
                            "image_id": number,
                        }
                        expected.append(row)
                    number += 1
            assert expected and rows(tmp_path / f"{task}.{split}.jsonl") == expected


def test_captioning_index_hides_the_captions_of_val_and_test(tmp_path: Path) -> None:
    make_index("coco_captioning", FIXTURES / "coco", tmp_path, TOKENIZER)
    images = raw("coco/dataset_coco.json")["images"]
    train = rows(tmp_path / "coco_captioning.train.jsonl")
    first = images[0]
    assert train[0] == {
        "image_path": "train2014/COCO_train2014_000000057870.jpg",
        "text_segment": segment(first["sentences"][0]["raw"]),
        "image_id": 57870,
    }
    assert len(train) == 5 * sum(image["split"] in ("train", "restval") for image in images)
    for split in ("val", "test"):
        expected = [
            {
                "image_path": f"{image['filepath']}/{image['filename']}",
                "text_segment": None,
                "image_id": image["cocoid"],
            }
            for image in images
            if image["split"] == split
        ]
        assert expected and rows(tmp_path / f"coco_captioning.{split}.jsonl") == expected


def test_nocaps_index_has_the_released_keys(tmp_path: Path) -> None:
    make_index("nocaps", FIXTURES / "nocaps", tmp_path, TOKENIZER)
    files = {"val": "nocaps_val_4500_captions.json", "test": "nocaps_test_image_info.json"}
    for split, name in files.items():
        expected = [
            {"image_path": f"{split}/{i['file_name']}", "text_segment": None, "image_id": i["id"]}
            for i in raw(f"nocaps/{name}")["images"]
        ]
        assert rows(tmp_path / f"nocaps.{split}.jsonl") == expected


def test_vqa_vocabulary_counts_normalised_majority_answers_of_train_and_val() -> None:
    # "one" is written by the annotators' majority, "1" enters the vocabulary; colours are rare.
    assert answer_vocabulary(FIXTURES / "vqav2") == {"yes": 0, "no": 1, "1": 2}


def test_vqa_index_has_the_released_keys_scores_and_splits(tmp_path: Path) -> None:
    make_index("vqav2", FIXTURES / "vqav2", tmp_path, TOKENIZER)
    labels = {"yes": 0, "no": 1, "1": 2}
    assert rows(tmp_path / "answer2label.txt") == [
        {"answer": answer, "label": label} for answer, label in labels.items()
    ]
    steps = {1: 0.3, 2: 0.6, 3: 0.9}
    for split, folder in (("train", "train2014"), ("val", "val2014")):
        questions = raw(f"vqav2/vqa/v2_OpenEnded_mscoco_{folder}_questions.json")["questions"]
        annotations = raw(f"vqav2/vqa/v2_mscoco_{folder}_annotations.json")["annotations"]
        expected = []
        for question, annotation in zip(questions, annotations, strict=True):
            given = [answer["answer"] for answer in annotation["answers"]]
            seen = [answer for answer in dict.fromkeys(given) if answer in labels]
            if seen:
                image = f"COCO_{folder}_{question['image_id']:012d}.jpg"
                row = {
                    "image_path": f"{folder}/{image}",
                    "text_segment": segment(question["question"]),
                    "labels": [labels[answer] for answer in seen],
                    "scores": [steps.get(given.count(answer), 1.0) for answer in seen],
                    "qid": question["question_id"],
                }
                expected.append(row)
        assert 0 < len(expected) < len(questions)  # unicorn and the colours have gone
        assert rows(tmp_path / f"vqa.{split}.jsonl") == expected
    for split, count in (("test", 12), ("test-dev", 8)):
        written = rows(tmp_path / f"vqa.{split}.jsonl")
        assert len(written) >= count and all(
            row["labels"] == row["scores"] == [] for row in written
        )


def test_vqa_rest_and_trainable_val_share_no_image_and_make_up_val() -> None:
    root = FIXTURES / "vqav2"
    val = {s.key: s.info["image_path"] for s in load_vqav2(root, "val")}
    rest = {s.key: s.info["image_path"] for s in load_vqav2(root, "rest_val", rest_val_images=1)}
    others = load_vqav2(root, "trainable_val", rest_val_images=1)
    train = {s.key: s.info["image_path"] for s in others}
    assert val == rest | train and len(set(rest.values())) == 1
    assert not set(rest.values()) & set(train.values())


def test_vqa_scores_follow_the_number_of_annotators() -> None:
    known = {"yes": 0}
    for count, score in ((0, None), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)):
        found = soft_scores(["yes"] * count + ["No"] * (10 - count), known)
        assert found == ({} if score is None else {"yes": score})


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Two", "2"),
        ("none", "0"),
        ("the red, round one.", "red round 1"),
        ("dont walk", "don't walk"),
        ("10:30", "10:30"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("black/white", "black white"),
        ("a", ""),
    ],
)
def test_vqa_normalising(answer: str, expected: str) -> None:
    assert normalise(answer) == expected


def test_nlvr2_index_has_the_released_keys(tmp_path: Path) -> None:
    make_index("nlvr2", FIXTURES / "nlvr2", tmp_path, TOKENIZER)
    parts = {
        "train": ("train", "images/train/7/"),
        "dev": ("dev", "dev/"),
        "test-P": ("test1", "test1/"),
    }
    for split, (name, folder) in parts.items():
        source = rows(FIXTURES / f"nlvr2/nlvr/nlvr2/data/{name}.json")
        expected = []
        for entry in source:
            pair = folder + str(entry["identifier"])[:-2]
            expected.append(
                {
                    "image_path": f"{pair}-img0.png",
                    "image2_path": f"{pair}-img1.png",
                    "text_segment": segment(str(entry["sentence"])),
                    "label": int(entry["label"] == "True"),
                    "identifier": entry["identifier"],
                }
            )
        assert expected and rows(tmp_path / f"nlvr2.{split}.index.jsonl") == expected


def test_nlvr2_pairs_have_two_pictures_and_a_set() -> None:
    sample = LOADED["nlvr2 train"][0]
    assert sample.image_b is not None and not torch.equal(sample.image, sample.image_b)  # type: ignore[arg-type]
    assert {s.info["set_id"] for s in LOADED["nlvr2 train"]} == {"train-10"}


def test_imagenet_index_numbers_the_sorted_synsets(tmp_path: Path) -> None:
    make_index("imagenet", FIXTURES / "imagenet", tmp_path, TOKENIZER)
    wnids = ["n01440764", "n02123045", "n07920052"]
    assert rows(tmp_path / "imagenet.train.index.jsonl") == [
        {"image_path": f"train/{wnid}/{wnid}_{10026 + i}.JPEG", "label": label}
        for label, wnid in enumerate(wnids)
        for i in range(2)
    ]
    assert rows(tmp_path / "imagenet.val.index.jsonl") == [
        {"image_path": f"val/{wnid}/ILSVRC2012_val_{293 + label:08d}.JPEG", "label": label}
        for label, wnid in enumerate(wnids)
    ]


@pytest.mark.parametrize("task", FILES)
def test_written_indexes_read_back_as_the_same_samples(task: str, tmp_path: Path) -> None:
    root = FIXTURES / task.removesuffix("_retrieval").removesuffix("_captioning")
    made = make_index(task, root, tmp_path, TOKENIZER)
    for split, source in made.items():
        back = load_index(tmp_path / FILES[task][2].format(split), TOKENIZER, root=root)
        hidden = task == "nocaps" or (task == "coco_captioning" and split != "train")
        expected = [
            (sample, () if hidden or not text else (TOKENIZER.decode(segment(text)),))
            for sample in source
            for text in (("",) if hidden else sample.texts or ("",))
        ]
        assert len(back) > 0 or (task, split) == ("vqav2", "trainable_val")
        for (sample, texts), read in zip(expected, back, strict=True):
            assert torch.equal(read.image, sample.image)  # type: ignore[arg-type]
            assert (read.texts, read.label, read.answers) == (texts, sample.label, sample.answers)


def test_ade20k_labels_start_at_zero_and_unlabelled_is_ignored() -> None:
    data = LOADED["ade20k training"]
    regions = [sample.regions for sample in data]
    assert all(r is not None and r.dtype == torch.int64 and r.shape == (32, 40) for r in regions)
    assert regions[0].unique().tolist() == [2, 149]  # type: ignore[union-attr]
    assert regions[3].unique().tolist() == [148, 255]  # type: ignore[union-attr]


def test_tar_shard_skips_the_failed_download_by_name_and_joins_the_broken_line() -> None:
    data = LOADED["tar"]
    assert [sample.key for sample in data] == [f"00000/{i:09d}" for i in (0, 1, 3, 4, 5)]
    assert len(data.skipped) == 1 and "00000/000000002" in data.skipped[0][1]
    assert "failed_to_download" in data.skipped[0][1]
    assert data[2].texts == ("a purple circle second line",)
    with tarfile.open(FIXTURES / "cc3m/00000.tar") as tar:
        member = tar.extractfile("000000000.jpg")
        assert member is not None
        digest = hashlib.sha256(member.read()).hexdigest()
    assert data[0].info["sha256"] == digest


def test_folder_captions_come_from_jsonl_csv_or_sidecars() -> None:
    assert LOADED["folder jsonl"][1].texts == ("A green square.", "a square that is green")
    assert LOADED["folder jsonl"][2].texts == ("<b>one</b> caption",)  # markup stays text
    assert [len(sample.texts) for sample in LOADED["folder csv"]] == [2, 2, 2]
    assert LOADED["folder txt"][0].key == "folder/sub/0"
    assert LOADED["folder txt"][0].texts == ("A red circle.", "a circle that is red")


def idx(sizes: list[int], values: bytes) -> bytes:
    head = bytes([0, 0, 8, len(sizes)]) + b"".join(n.to_bytes(4, "big") for n in sizes)
    return gzip.compress(head + values)


def test_fashion_mnist_reads_idx_files(tmp_path: Path) -> None:
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(idx([2, 28, 28], bytes(784) + b"\7" * 784))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(idx([2], b"\0\t"))
    data = FashionMNIST(tmp_path, "test")
    assert len(data) == 2 and data[1].label == 9 and data[1].info["class_name"] == "ankle boot"
    assert data[1].image is not None and data[1].image.shape == (3, 28, 28)
    assert (data[1].image == 7).all()


def test_easy_vqa_reads_triples(tmp_path: Path) -> None:
    (tmp_path / "test/images").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "test/images/0.png")
    (tmp_path / "answers.txt").write_text("circle\nyes\nno")
    questions = [["is there a circle?", "yes", 0], ["is there a box?", "no", 0]]
    (tmp_path / "test/questions.json").write_text(json.dumps(questions))
    data = load_easy_vqa(tmp_path, "test")
    assert data[1].answers == {"no": 1.0} and data[1].label == 2
    assert data[0].texts == ("is there a circle?",)


def test_tuxpaint_takes_the_language_and_leaves_out_symbols_and_mirrors(tmp_path: Path) -> None:
    for name in ("animals/cat", "food/pear", "symbols/a"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGBA", (9, 9)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"A {name[-3:]}.\nde.utf8=Bild {name}\n")
    Image.new("RGBA", (9, 9)).save(tmp_path / "animals/cat_mirror.png")
    (tmp_path / "food/pear.txt").write_text("A pear.\n")
    english, german = load_tuxpaint(tmp_path), load_tuxpaint(tmp_path, "de")
    assert [(s.key, s.label, s.texts) for s in english] == [
        ("tuxpaint/animals/cat", 0, ("A cat.",)),
        ("tuxpaint/food/pear", 1, ("A pear.",)),
    ]
    assert [s.texts for s in german] == [("Bild animals/cat",)]
