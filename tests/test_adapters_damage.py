"""Damaged and hostile data sets: every bad record is raised or named, and nothing else happens."""

import gzip
import io
import json
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from minibeit3.data.captions import load_coco, load_flickr30k, load_nocaps
from minibeit3.data.class_folders import load_ade20k, load_imagenet
from minibeit3.data.folder import load_folder
from minibeit3.data.images import ImageError
from minibeit3.data.index_jsonl import load_index, make_index
from minibeit3.data.nlvr2 import load_nlvr2
from minibeit3.data.packaged import FashionMNIST, load_easy_vqa, load_tuxpaint
from minibeit3.data.paths import data_root
from minibeit3.data.records import DataError, Records, caption
from minibeit3.data.tar_shards import load_tar_shards
from minibeit3.data.vqav2 import load_vqav2
from minibeit3.text_tokenizer import TextTokenizer

FIXTURES = data_root() / "fixtures"
HOSTILE = [
    "/etc/passwd",
    "//etc/passwd",
    "../secret.png",
    "../../../../etc/passwd",
    "a/../../secret.png",
    "pictures/../../secret.png",
    "..",
    "../",
    "./..",
    "pictures/..\\..\\secret.png",
    "..\\secret.png",
    "\\\\host\\share\\x.png",
    "\\etc\\passwd",
    "C:/secret.png",
    "c:secret.png",
    "C:\\secret.png",
    "file:///etc/passwd",
    "http://example.org/x.png",
    "https://example.org/x.png",
    "s3://bucket/x.png",
    "pipe:cat /etc/passwd",
    "data:image/png;base64,AAAA",
    "a.png\0.txt",
    "\0",
    "",
    " ",
    "link/passwd",
    "link.png",
    "../folder_twin/secret.png",
    "x" * 5000,
]
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBERS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


def tokenizer() -> TextTokenizer:
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red circle and a blue square"] * 20),
        model_writer=out,
        vocab_size=30,
        minloglevel=2,
        num_threads=1,
        hard_vocab_limit=False,
    )
    return TextTokenizer.from_bytes(out.getvalue())


TOKENIZER = tokenizer()


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[str], Path]:
    """A private copy of one fixture, to be damaged."""
    return lambda name: Path(shutil.copytree(FIXTURES / name, tmp_path / name))


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_bad_records_are_named_the_good_ones_keep_their_order(
    copy: Callable[[str], Path],
) -> None:
    root = copy("coco")
    before = [sample.key for sample in load_coco(root, "train")]

    def damage(table: dict) -> None:
        images = table["images"]
        images[0]["sentences"][2]["raw"] = 7  # a caption that is not text
        images[1]["filename"] = "../../outside.jpg"
        images[2]["filename"] = "gone.jpg"
        images[3] = "not an object"

    edit_json(root / "dataset_coco.json", damage)
    with pytest.raises(DataError, match=r"coco\[0\].*'raw' is 7"):
        load_coco(root, "train")
    data = load_coco(root, "train", on_bad="skip", max_bad=1)
    assert [sample.key for sample in data] == before[4:]
    reasons = dict(data.skipped)
    assert list(reasons) == ["coco[0]", "coco[1]", "coco[2]", "coco[3]"]
    for place, reason in zip(
        reasons, ("'raw'", "leaves its folder", "gone.jpg", "JSON"), strict=True
    ):
        assert reason in reasons[place]


def test_more_bad_records_than_allowed_abort(copy: Callable[[str], Path]) -> None:
    root = copy("flickr30k")
    edit_json(root / "dataset_flickr30k.json", lambda t: t["images"][0].update(filename="gone"))
    with pytest.raises(DataError, match=r"1 of 4 records are bad, the limit is 1\.0%"):
        load_flickr30k(root, "train", on_bad="skip")
    assert len(load_flickr30k(root, "train", on_bad="skip", max_bad=0.25)) == 3


def test_a_bad_picture_raises_on_access_and_verify_honours_the_policy(
    copy: Callable[[str], Path],
) -> None:
    root = copy("coco")
    truncate(root / "train2014/COCO_train2014_000000058883.jpg")
    data = load_coco(root, "train", on_bad="skip", max_bad=0.2)
    with pytest.raises(ImageError, match=r"coco/58883"):
        data[1]
    assert len(data) == 6 and not data.skipped  # found by decoding alone
    data.verify()
    assert len(data) == 5 and [key for key, _ in data.skipped] == ["coco/58883"]
    assert [sample.key for sample in data][:2] == ["coco/57870", "coco/59896"]
    with pytest.raises(DataError, match=r"coco/58883"):
        load_coco(root, "train").verify()
    with pytest.raises(DataError, match=r"1 of 6 records"):
        load_coco(root, "train", on_bad="skip").verify()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_never_leave_the_folder(name: str, tmp_path: Path) -> None:
    root = tmp_path / "folder"
    (root / "pictures").mkdir(parents=True)
    (tmp_path / "folder_twin").mkdir()
    picture = FIXTURES / "folder/jsonl/pictures/0.png"
    for secret in (tmp_path / "secret.png", tmp_path / "folder_twin/secret.png"):
        shutil.copy(picture, secret)
    (root / "link").symlink_to("/etc")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "captions.jsonl").write_text(json.dumps({"image": name, "caption": "x"}) + "\n")
    with pytest.raises(DataError):
        load_folder(root)
    index = {"image_path": name, "text_segment": [4], "image_id": 0}
    (root / "x.jsonl").write_text(json.dumps(index) + "\n")
    data = load_index(root / "x.jsonl", TOKENIZER, on_bad="skip", max_bad=1)
    assert len(data) == 0 and len(data.skipped) == 1


def shard(path: Path, members: list[tuple[str, bytes]], **header: object) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, body in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            for field, value in header.items():
                setattr(entry, field, value)
            tar.addfile(entry, io.BytesIO(body))
    return path


JPEG = (FIXTURES / "nocaps/val/0000000000000000.jpg").read_bytes()


@pytest.mark.parametrize(
    "name", [n for n in HOSTILE if n.strip() and "link" not in n and n != "x.png"]
)
def test_hostile_member_names_are_refused_or_only_a_key(name: str, tmp_path: Path) -> None:
    path = shard(tmp_path / "0.tar", [(f"{name}.jpg", JPEG), (f"{name}.txt", b"x")])
    data = load_tar_shards(path, on_bad="skip", max_bad=1)
    assert not [p for p in tmp_path.iterdir() if p != path]  # nothing was written
    assert len(data) == 0 or set(name) == {"x"}


def test_links_and_pickles_in_a_tar_are_never_followed(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    payload = f"cos\nsystem\n(S'touch {canary}'\ntR.".encode()
    good = [("a.jpg", JPEG), ("a.txt", b"a circle"), ("a.pyd", payload), ("a.pickle", payload)]
    data = load_tar_shards(shard(tmp_path / "0.tar", good))
    assert data[0].texts == ("a circle",) and not canary.exists()
    link = shard(tmp_path / "1.tar", [("b.jpg", b"")], type=tarfile.SYMTYPE, linkname="/etc/passwd")
    with pytest.raises(DataError, match=r"not a file"):
        load_tar_shards(link)


def test_damaged_shards_report_exactly_what_is_lost(tmp_path: Path) -> None:
    def pair(i: int) -> list[tuple[str, bytes]]:
        return [(f"{i}.jpg", JPEG), (f"{i}.txt", b"words")]

    whole = shard(tmp_path / "0.tar", [m for i in range(6) for m in pair(i)])
    shard(
        tmp_path / "1.tar",
        [
            *pair(0),
            ("1.txt", b"no picture"),
            ("2.jpg", JPEG),
            ("3.jpg", JPEG[:200]),
            ("3.txt", b"broken picture"),
            ("4.jpg", JPEG),
            ("4.json", b"{broken"),
            ("5.jpg", JPEG),
            ("5.txt", b"\xff\xfe"),
            *pair(6),
        ],
    )
    cut = tmp_path / "2.tar"
    cut.write_bytes(whole.read_bytes()[: 4 * 2560])  # the fourth pair is whole, then nothing
    flipped = bytearray(whole.read_bytes())
    flipped[2 * 2560 + 30] ^= 0xFF  # third pair's header: tarfile alone would call this the end
    (tmp_path / "3.tar").write_bytes(flipped)
    (tmp_path / "4.tar").write_bytes(b"not a tar")
    data = load_tar_shards(tmp_path, on_bad="skip", max_bad=1)
    data.verify()
    assert [record.sample.key for record in data.records] == [
        *(f"0/{i}" for i in range(6)),
        *("1/0", "1/6"),
        *(f"2/{i}" for i in range(4)),
        *("3/0", "3/1"),
    ]
    reasons = [reason for _, reason in data.skipped]
    wanted = ("1/1", "1/2", "1/4", "1/5", "2.tar", "3.tar", "4.tar", "1/3")
    assert len(reasons) == len(wanted)
    for reason, name in zip(reasons, wanted, strict=True):
        assert reason.startswith(name), (reason, name)


@pytest.mark.parametrize("size", [-1, -100, -1024, 2**40])
def test_a_tar_member_of_impossible_size_ends_the_archive(size: int, tmp_path: Path) -> None:
    path = shard(tmp_path / "0.tar", [("a.jpg", JPEG), ("a.txt", b"x")])
    data = bytearray(path.read_bytes())
    data[124:136] = size.to_bytes(12, "big", signed=True)
    data[124] |= 0x80  # the mark of a base-256 number
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)
    start = time.perf_counter()
    with pytest.raises(DataError, match=r"damaged"):
        load_tar_shards(path)
    assert time.perf_counter() - start < 1


def test_captions_are_one_line_and_must_be_text() -> None:
    assert caption(" two\r\nlines\tand\u2028more ") == "two lines and more"
    assert caption("<img src=x onerror=alert(1)>") == "<img src=x onerror=alert(1)>"
    for bad in (None, 3, ["a"], "", " \n", "half \ud800"):
        with pytest.raises(DataError, match=r"caption"):
            caption(bad)


def test_vqa_question_without_annotation_is_bad(copy: Callable[[str], Path]) -> None:
    root = copy("vqav2")
    path = root / "vqa/v2_mscoco_train2014_annotations.json"
    edit_json(path, lambda table: table["annotations"].pop(0))
    data = load_vqav2(root, "train", on_bad="skip", max_bad=0.1)
    assert [key for key, _ in data.skipped] == ["train2014[0]"] or "no annotation" in str(
        data.skipped
    )


def test_nlvr2_label_other_than_true_or_false_is_bad(copy: Callable[[str], Path]) -> None:
    root = copy("nlvr2")
    path = root / "nlvr/nlvr2/data/dev.json"
    path.write_text(path.read_text().replace('"True"', '"true"').replace('"False"', '"true"', 1))
    with pytest.raises(DataError, match=r"'true'"):
        load_nlvr2(root, "dev")


def test_imagenet_class_unknown_to_train_and_missing_ade_map_are_bad(
    copy: Callable[[str], Path],
) -> None:
    root = copy("imagenet")
    (root / "val/n02123045").rename(root / "val/n99999999")
    with pytest.raises(DataError, match=r"n99999999"):
        load_imagenet(root, "val")
    root = copy("ade20k")
    (root / "annotations/training/ADE_train_00000002.png").unlink()
    with pytest.raises(DataError, match=r"ADE_train_00000002"):
        load_ade20k(root, "training")


def test_ade20k_label_above_150_is_an_image_error(copy: Callable[[str], Path]) -> None:
    root = copy("ade20k")
    Image.new("L", (40, 32), 151).save(root / "annotations/training/ADE_train_00000001.png")
    with pytest.raises(ImageError, match=r"label 151"):
        load_ade20k(root, "training")[0]


def test_index_rows_of_another_tokenizer_or_answer_list_are_bad(
    copy: Callable[[str], Path], tmp_path: Path
) -> None:
    root = copy("vqav2")
    make_index("vqav2", root, root, TOKENIZER)
    row = json.loads((root / "vqa.train.jsonl").read_text().splitlines()[0])
    for change in (
        {"text_segment": [10**6]},
        {"text_segment": [True]},
        {"text_segment": []},
        {"labels": [99]},
        {"label": True},
        {"scores": [2]},
        {"labels": []},
        {"image_path": None},
    ):
        (root / "one.jsonl").write_text(json.dumps(row | change) + "\n")
        with pytest.raises(DataError):
            load_index(root / "one.jsonl", TOKENIZER)
    (root / "one.jsonl").write_text(json.dumps(row) + "\n" + "[" * 100_000)
    assert len(load_index(root / "one.jsonl", TOKENIZER, on_bad="skip", max_bad=0.5)) == 1


def test_missing_folders_files_and_unknown_splits_say_what_is_expected(tmp_path: Path) -> None:
    loaders = (load_coco, load_flickr30k, load_nocaps, load_vqav2, load_nlvr2)
    for load in loaders:
        with pytest.raises(ValueError, match=r"validate"):
            load(tmp_path, "validate")
    for load in (*loaders, load_imagenet, load_ade20k):
        with pytest.raises(DataError):
            load(tmp_path / "nowhere", "val" if load not in (load_nlvr2,) else "dev")
        if load is not load_nlvr2:
            with pytest.raises(DataError):
                load(tmp_path, "val")
    for load in (load_folder, load_tuxpaint, load_tar_shards):
        with pytest.raises(DataError):
            load(tmp_path / "nowhere")
    with pytest.raises(DataError):
        load_easy_vqa(tmp_path, "train")
    with pytest.raises(DataError, match=r"t10k-images"):
        FashionMNIST(tmp_path, "test")
    with pytest.raises(ValueError, match=r"on_bad='ignore'"):
        Records("x", [], lambda entry: None, on_bad="ignore")  # type: ignore[arg-type]


FAST = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FAST
@given(junk=st.dictionaries(st.sampled_from(["image", "caption"]), JUNK) | JUNK)
def test_any_json_line_is_read_or_named(junk: object, tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").write_text(json.dumps(junk) + "\n")
    data = load_folder(tmp_path, on_bad="skip", max_bad=1)
    assert len(data) + len(data.skipped) == 1


def test_an_absurdly_long_json_line_is_bad_before_it_is_parsed(tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").write_text(json.dumps({"image": "a", "caption": "x" * 2**20}))
    with pytest.raises(DataError, match=r"limit is 1,048,576"):
        load_folder(tmp_path)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_json_that_only_python_reads_is_bad(constant: str, tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").write_text(f'{{"image": "a", "caption": {constant}}}\n')
    with pytest.raises(DataError, match=f"{constant} is not JSON"):
        load_folder(tmp_path)


@FAST
@given(line=st.binary(max_size=60))
def test_any_bytes_in_jsonl_csv_and_sidecar_raise_only_data_errors(
    line: bytes, tmp_path: Path
) -> None:
    shutil.copy(FIXTURES / "folder/csv/0.jpg", tmp_path / "0.jpg")
    for name in ("captions.jsonl", "captions.csv", "0.txt"):
        for other in tmp_path.glob("captions.*"):
            other.unlink()
        (tmp_path / name).write_bytes(b"image,caption\n" * name.endswith("csv") + line)
        try:
            load_folder(tmp_path, on_bad="skip", max_bad=1)
        except DataError:
            continue


@FAST
@given(junk=JUNK, field=st.sampled_from(["filename", "filepath", "split", "cocoid", "sentences"]))
def test_any_value_in_a_karpathy_entry_is_read_or_named(
    junk: object, field: str, tmp_path: Path
) -> None:
    table = json.loads((FIXTURES / "coco/dataset_coco.json").read_text())
    table["images"] = [table["images"][0] | {field: junk}]
    if not (tmp_path / "train2014").exists():
        shutil.copytree(FIXTURES / "coco/train2014", tmp_path / "train2014")
    (tmp_path / "dataset_coco.json").write_text(json.dumps(table))
    data = load_coco(tmp_path, "train", on_bad="skip", max_bad=1)
    assert len(data) + len(data.skipped) <= 1


TAR = (FIXTURES / "cc3m/00000.tar").read_bytes()


@FAST
@given(
    edits=st.lists(st.tuples(st.integers(0, len(TAR) - 1), st.integers(0, 255)), max_size=6),
    header=st.lists(st.tuples(st.integers(0, 511), st.integers(0, 255)), max_size=3),
    cut=st.integers(0, len(TAR)),
)
def test_any_damaged_tar_raises_only_documented_errors(
    edits: list[tuple[int, int]], header: list[tuple[int, int]], cut: int, tmp_path: Path
) -> None:
    data = bytearray(TAR)
    for where, value in edits + header:
        data[where] = value
    if header:  # a header that passes its checksum
        data[148:156] = b" " * 8
        data[148:156] = b"%06o\0 " % sum(data[:512])
    (tmp_path / "0.tar").write_bytes(data[: len(data) - cut if cut % 3 else len(data)])
    shards = load_tar_shards(tmp_path / "0.tar", on_bad="skip", max_bad=1)
    shards.verify()
    assert len(shards) + len(shards.skipped) > 0


@FAST
@given(data=st.binary(max_size=64), packed=st.booleans())
def test_any_idx_file_raises_only_data_errors(data: bytes, packed: bool, tmp_path: Path) -> None:
    for name in ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"):
        (tmp_path / name).write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(DataError):
        FashionMNIST(tmp_path, "train")


def test_a_gzip_bomb_stops_at_the_limit(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(200 * 2**20), compresslevel=1)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(bomb)
    with pytest.raises(DataError, match=r"104,857,601 bytes"):
        FashionMNIST(tmp_path, "train")
