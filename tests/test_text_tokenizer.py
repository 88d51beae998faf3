"""Properties of minibeit3.text_tokenizer, on small models of both layouts."""

import io
import json
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minibeit3.text_tokenizer import TextTokenizer, TokenizerError

LAB_IDS = {"bos_id": 0, "pad_id": 1, "eos_id": 2, "unk_id": 3, "user_defined_symbols": ["<mask>"]}
LINES = [
    "a red star left of a blue ring",
    "the small cat sat on the mat",
    "two dogs and one bird near a tree",
]
# Loads each file named on stdin, uses what loads, and reports any undocumented exception.
CHILD = """
import sys
from minibeit3.text_tokenizer import TextTokenizer, TokenizerError
for line in sys.stdin:
    try:
        tokenizer = TextTokenizer.load(line.strip())
        ids = tokenizer.encode("A red cat <mask> 好 \\u0130", 16)
        tokenizer.decode(ids), tokenizer.pieces("a red cat")
    except ValueError as error:
        assert isinstance(error, TokenizerError), repr(error)
print("survived")
"""


def train(lines: Sequence[str] = LINES, **options: Any) -> bytes:
    """A SentencePiece model; without options it has the id order of the released file."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*lines] * 20),
        model_writer=out,
        vocab_size=45,
        minloglevel=2,
        num_threads=1,
        hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc_cf",
        **options,
    )
    return out.getvalue()


LAB, RELEASED = train(**LAB_IDS), train()
BOTH = [TextTokenizer.from_bytes(model) for model in (LAB, RELEASED)]


@pytest.fixture(params=[LAB, RELEASED], ids=["lab", "released"])
def tokenizer(request: pytest.FixtureRequest) -> TextTokenizer:
    return TextTokenizer.from_bytes(request.param)


def test_lab_ids_are_used_as_trained() -> None:
    tokenizer, model = TextTokenizer.from_bytes(LAB), sentencepiece.SentencePieceProcessor()
    model.LoadFromSerializedProto(LAB)
    assert tokenizer.token_ids("a red cat") == model.encode("a red cat", out_type=int)
    assert tokenizer.mask_id == model.piece_to_id("<mask>")
    assert tokenizer.vocab_size == len(tokenizer) == model.get_piece_size()


def test_released_ids_are_shifted_by_one_with_mask_after_the_last_piece() -> None:
    tokenizer, model = TextTokenizer.from_bytes(RELEASED), sentencepiece.SentencePieceProcessor()
    model.LoadFromSerializedProto(RELEASED)
    plain = model.encode("a red cat", out_type=int)
    assert tokenizer.token_ids("a red cat") == [i + 1 for i in plain]
    assert tokenizer.token_ids("好")[-1] == tokenizer.unk_id == 3
    # 64,000 pieces: 64,002 ids, <mask> the last of them (64001), 64,010 rows.
    size = model.get_piece_size()
    assert (tokenizer.mask_id, tokenizer.vocab_size) == (size + 1, size + 10)


def test_special_ids_are_those_of_the_released_order(tokenizer: TextTokenizer) -> None:
    specials = (tokenizer.bos_id, tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id)
    assert specials == (0, 1, 2, 3)
    assert [tokenizer.piece(i) for i in (*specials, tokenizer.mask_id)] == [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        "<mask>",
    ]


@settings(max_examples=120, deadline=None)
@given(text=st.text(max_size=60), released=st.booleans(), max_length=st.integers(2, 12))
def test_every_text_encodes_within_length_and_framed(
    text: str, released: bool, max_length: int
) -> None:
    tokenizer = BOTH[released]
    try:
        ids = tokenizer.encode(text, max_length)
    except ValueError:
        assert any("\ud800" <= sign <= "\udfff" for sign in text)
        return
    assert ids[0] == 0 and ids[-1] == 2 and len(ids) <= max_length
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert not {0, 1, 2} & set(ids[1:-1])  # control ids never come out of a text
    tokenizer.decode(ids)


def test_the_lab_model_of_the_repository_loads() -> None:
    tokenizer = TextTokenizer.lab()
    assert len(tokenizer) == 4000 and not tokenizer.shift
    assert tokenizer.decode(tokenizer.encode("the star is left of the ring", 32)).endswith("ring")


def test_known_words_round_trip(tokenizer: TextTokenizer) -> None:
    for line in LINES:
        assert tokenizer.decode(tokenizer.encode(line, 64)) == line


def test_empty_text_is_just_the_frame(tokenizer: TextTokenizer) -> None:
    assert tokenizer.encode("", 8) == [0, 2]
    assert tokenizer.decode([0, 2]) == "" and tokenizer.pieces("") == []


def test_truncation_cuts_the_text_and_keeps_the_end(tokenizer: TextTokenizer) -> None:
    whole = tokenizer.encode(LINES[0], 64)
    assert tokenizer.encode(LINES[0], 5) == [*whole[:4], 2]
    with pytest.raises(ValueError, match=r"max_length=1"):
        tokenizer.encode("a", 1)


def test_mask_in_the_text_is_the_mask_id_in_both_layouts(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("a red <mask> cat", 64)
    assert ids.count(tokenizer.mask_id) == 1
    assert [i for i in ids if i != tokenizer.mask_id] == tokenizer.encode("a red cat", 64)


def test_batch_pads_and_marks_real_tokens(tokenizer: TextTokenizer) -> None:
    ids, real = tokenizer.batch(["", LINES[0]], 64)
    assert ids.dtype == torch.int64 and real.dtype == torch.bool and ids.shape == real.shape
    assert real.sum(1).tolist() == [2, ids.shape[1]]
    assert (ids[~real] == tokenizer.pad_id).all() and not (ids[real] == tokenizer.pad_id).any()
    assert tokenizer.batch(["", "a"], 64, pad_to=9)[0].shape == (2, 9)
    with pytest.raises(ValueError, match=r"pad_to=3"):
        tokenizer.batch(LINES, 64, pad_to=3)
    for nothing in ([], "a text instead of a list"):
        with pytest.raises(ValueError, match=r"list of at least one"):
            tokenizer.batch(nothing, 64)


def test_decode_spells_out_specials_on_request(tokenizer: TextTokenizer) -> None:
    ids = [*tokenizer.encode("a <mask> cat", 64), tokenizer.pad_id]
    assert tokenizer.decode(ids, skip_specials=False) == "<s> a <mask> cat </s> <pad>"
    assert tokenizer.decode(torch.tensor(ids)) == "a cat"


def test_rows_without_a_piece_decode_to_nothing_and_foreign_ids_raise() -> None:
    tokenizer = TextTokenizer.from_bytes(RELEASED)
    spare = tokenizer.vocab_size - 1
    assert tokenizer.piece(spare) == "<unused>" and tokenizer.decode([spare]) == ""
    for foreign in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=str(foreign)):
            tokenizer.decode([foreign])


def test_saved_tokenizer_comes_back_and_a_replaced_model_is_noticed(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path / "model")
    back = TextTokenizer.from_pretrained(tmp_path / "model")
    assert repr(back) == repr(tokenizer)
    assert back.encode(LINES[1], 64) == tokenizer.encode(LINES[1], 64)
    other = train(LINES[:2], **({} if tokenizer.shift else LAB_IDS))
    (tmp_path / "model" / "text_tokenizer.model").write_bytes(other)
    with pytest.raises(TokenizerError, match=r"replaced or damaged"):
        TextTokenizer.from_pretrained(tmp_path / "model")
    for broken in (b"", b"[1", b'{"sha256": 1}', b"[" * 100_000):
        (tmp_path / "model" / "text_tokenizer.json").write_bytes(broken)
        with pytest.raises(TokenizerError):
            TextTokenizer.from_pretrained(tmp_path / "model")


def test_a_tokenizer_travels_to_workers(tokenizer: TextTokenizer) -> None:
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode(LINES[0], 64) == tokenizer.encode(LINES[0], 64)


def test_unusable_files_are_refused_with_name_and_cause(tmp_path: Path) -> None:
    (tmp_path / "empty.model").write_bytes(b"")
    (tmp_path / "text.model").write_text("not a model")
    (tmp_path / "other.model").write_bytes(train(bos_id=5, eos_id=6, unk_id=0))
    (tmp_path / "unmasked.model").write_bytes(train(bos_id=0, pad_id=1, eos_id=2, unk_id=3))
    with (tmp_path / "huge.model").open("wb") as file:
        file.truncate(2**27)
    for name in ("empty", "text", "other", "unmasked", "huge", "missing"):
        with pytest.raises(TokenizerError, match=name):
            TextTokenizer.load(tmp_path / f"{name}.model")
    with pytest.raises(TokenizerError):
        TextTokenizer.load(tmp_path)


def test_a_piece_that_is_not_utf8_is_refused_at_load() -> None:
    with pytest.raises(TokenizerError, match=r"utf-8"):
        TextTokenizer.from_bytes(LAB.replace("▁a".encode(), b"\xff" * 4, 1))


@pytest.mark.slow
def test_mutated_models_raise_only_the_documented_error_and_never_crash(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for number in range(300):
        model = bytearray(LAB if number % 2 else RELEASED)
        for where in torch.randint(len(model), (1 + number % 6,), generator=generator).tolist():
            model[where] = int(torch.randint(256, (), generator=generator))
        cut = number % 5 == 0 and number % len(model)
        (tmp_path / f"{number}.model").write_bytes(bytes(model[: len(model) - cut]))
    names = "\n".join(str(path) for path in sorted(tmp_path.iterdir()))
    run = subprocess.run(
        [sys.executable, "-c", CHILD], input=names, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0 and run.stdout.strip() == "survived", run.stderr[-2000:]


def test_saved_json_names_the_special_ids(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    saved = json.loads((tmp_path / "text_tokenizer.json").read_text())
    assert saved["mask_id"] == tokenizer.mask_id and saved["vocab_size"] == tokenizer.vocab_size
