"""Words to ids and back: SentencePiece in the id order that BEiT-3 uses.

BEiT-3 sequences are `<s> pieces </s> <pad> ...` with ids 0, 2, 1 (FACTS: XLM-R order). A lab model
is trained so that its own ids already are in that order. The released `beit3.spm` (64,000 pieces)
is not: there an ordinary piece has SentencePiece id + 1, `<mask>` comes after the last piece
(64001), and the embedding has 8 rows more than there are ids (64010).

Legend: B batch, T text tokens.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from sentencepiece import SentencePieceProcessor

from minibeit3.data.paths import data_root

MODEL_FILE, IDS_FILE = "text_tokenizer.model", "text_tokenizer.json"
MAX_MODEL_BYTES = 64 * 2**20
_RELEASED_SPARE_ROWS = 8
_MASK = re.compile(r"\s*<mask>")


class TokenizerError(ValueError):
    """A tokenizer file that cannot be used; the message names the file, the cause and the fix."""


@dataclass(frozen=True, repr=False, eq=False)
class TextTokenizer:
    """A SentencePiece model under BEiT-3's ids; build it by `load`, `lab` or `from_pretrained`.

    vocab_size counts embedding rows, so ids from the last piece up to it may have no piece.
    shift: how far an ordinary piece's id lies above its SentencePiece id (lab 0, released 1).
    """

    processor: SentencePieceProcessor
    shift: int
    vocab_size: int
    mask_id: int
    bos_id: int = 0
    pad_id: int = 1
    eos_id: int = 2
    unk_id: int = 3

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "TextTokenizer":
        """Read a SentencePiece file in the lab's or the released layout; which one, it tells.

        Raises TokenizerError for a missing, damaged or oversized file and for other layouts.
        """
        path = Path(path)
        try:
            if path.stat().st_size > MAX_MODEL_BYTES:
                raise TokenizerError(
                    f"{path}: {path.stat().st_size:,} bytes, the limit is {MAX_MODEL_BYTES:,}"
                )
            return cls.from_bytes(path.read_bytes(), str(path))
        except OSError as error:
            raise TokenizerError(f"cannot read the tokenizer {path}: {error}") from error

    @classmethod
    def from_bytes(cls, model: bytes, name: str = "<bytes>") -> "TextTokenizer":
        """The same from the file's content; `name` appears in errors."""
        if not model:
            raise TokenizerError(f"{name} is empty, expected a SentencePiece model")
        try:
            processor = SentencePieceProcessor(model_proto=model)
            pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
        except (RuntimeError, UnicodeDecodeError) as error:
            raise TokenizerError(f"{name} is not a usable SentencePiece model: {error}") from error
        specials = (
            processor.bos_id(),
            processor.pad_id(),
            processor.eos_id(),
            processor.unk_id(),
        )
        rows = len(pieces)
        if specials == (0, 1, 2, 3) and "<mask>" in pieces:
            return cls(processor, 0, rows, pieces.index("<mask>"))
        if specials == (1, -1, 2, 0):
            return cls(processor, 1, rows + 2 + _RELEASED_SPARE_ROWS, rows + 1)
        raise TokenizerError(
            f"{name} has bos, pad, eos, unk = {specials}: expected (0, 1, 2, 3) and a <mask> piece "
            "(train with bos_id=0, pad_id=1, eos_id=2, unk_id=3, user_defined_symbols=['<mask>']) "
            "or the released layout (1, -1, 2, 0)"
        )

    @classmethod
    def lab(cls) -> "TextTokenizer":
        """The lab's own 4,000 pieces, trained on WordNet glosses and emoji names."""
        return cls.load(data_root() / "tokenizer" / "lab4k.model")

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str]) -> "TextTokenizer":
        """Read what `save` wrote; TokenizerError when the two files do not belong together."""
        folder = Path(folder)
        tokenizer = cls.load(folder / MODEL_FILE)
        try:
            saved = json.loads((folder / IDS_FILE).read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise TokenizerError(f"cannot read {folder / IDS_FILE}: {error}") from error
        if saved != tokenizer._ids():
            raise TokenizerError(
                f"{folder / IDS_FILE} says {saved}, {MODEL_FILE} gives {tokenizer._ids()}: "
                "one of them was replaced or damaged"
            )
        return tokenizer

    def save(self, folder: str | PathLike[str]) -> None:
        """Write the model and a JSON of its special ids and SHA-256 into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MODEL_FILE).write_bytes(self.processor.serialized_model_proto())
        (folder / IDS_FILE).write_text(json.dumps(self._ids(), indent=2) + "\n", encoding="utf-8")

    def token_ids(self, text: str) -> list[int]:
        """Ids of `text` without `<s>` and `</s>`, uncut: `text_segment` of the released indexes.

        "<mask>" in the text becomes the mask id, together with the space before it, as in the
        released tokenizer. Raises ValueError for text that is not valid Unicode.
        """
        ids: list[int] = []
        for number, words in enumerate(_MASK.split(_encodable(text))):
            ids += [self.mask_id] * (number > 0)
            ids += [self._ours(piece) for piece in self.processor.encode(words, out_type=int)]
        return ids

    def encode(self, text: str, max_length: int) -> list[int]:
        """`<s> pieces </s>`, at most `max_length` ids: the end of the text is cut, never `</s>`.

        Raises ValueError when max_length has no room for the two.
        """
        if max_length < 2:
            raise ValueError(f"max_length={max_length}: <s> and </s> alone need 2")
        return [self.bos_id, *self.token_ids(text)[: max_length - 2], self.eos_id]

    def batch(
        self, texts: Sequence[str], max_length: int, pad_to: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """ids int64 (B, T) and real bool (B, T), True = a token, False = padding.

        T is `pad_to`, or the longest text. Raises ValueError for no texts or too small a pad_to.
        """
        if isinstance(texts, str) or not texts:
            raise ValueError(f"expected a list of at least one text, got {texts!r}")
        rows = [self.encode(text, max_length) for text in texts]
        longest = max(map(len, rows))
        width = longest if pad_to is None else pad_to
        if width < longest:
            raise ValueError(f"pad_to={pad_to}, but a text has {longest} tokens: lower max_length")
        ids = torch.tensor([row + [self.pad_id] * (width - len(row)) for row in rows])
        lengths = torch.tensor([[len(row)] for row in rows])
        return ids, torch.arange(width) < lengths

    def pieces(self, text: str) -> list[str]:
        """What the model sees of `text`, for people: "▁" is a space, "<unk>" an unknown sign."""
        return [self.piece(token) for token in self.token_ids(text)]

    def piece(self, token: int) -> str:
        """The piece of one id, specials by name, "<unused>" for a row without a piece.

        Untrusted like every text: escape it before it goes into HTML.
        Raises ValueError for an id outside the embedding.
        """
        if not 0 <= token < self.vocab_size:
            raise ValueError(f"id {token} is outside 0 .. {self.vocab_size - 1}")
        if token == self.unk_id:
            return "<unk>"
        return self._name(token) or self.processor.id_to_piece(token - self.shift)

    def decode(self, ids: Iterable[int] | torch.Tensor, skip_specials: bool = True) -> str:
        """Text of `ids` (a list or a 1-D tensor); an unknown piece shows as "⁇".

        Specials and rows without a piece are left out, or spelled out ("<s> a cat </s>").
        """
        parts: list[str] = []
        words: list[int] = []
        for token in map(int, ids):
            self.piece(token)  # refuses ids outside the embedding
            name = self._name(token)
            if name is None:
                words.append(self._inner(token))
            elif not skip_specials:
                parts += [self.processor.decode(words), name]
                words = []
        parts.append(self.processor.decode(words))
        return " ".join(filter(None, map(str.strip, parts)))

    def __len__(self) -> int:
        return self.vocab_size

    def __repr__(self) -> str:
        layout = "released" if self.shift else "lab"
        return f"TextTokenizer({layout} layout, {self.vocab_size:,} rows, mask {self.mask_id})"

    def _ours(self, inner: int) -> int:
        return self.unk_id if inner == self.processor.unk_id() else inner + self.shift

    def _inner(self, token: int) -> int:
        return self.processor.unk_id() if token == self.unk_id else token - self.shift

    def _name(self, token: int) -> str | None:
        """Name of an id that stands for no text; the unknown piece does stand for some."""
        specials = {self.bos_id: "<s>", self.pad_id: "<pad>", self.eos_id: "</s>"}
        unused = token - self.shift >= self.processor.get_piece_size()
        default = "<unused>" if unused else None
        return {**specials, self.mask_id: "<mask>"}.get(token, default)

    def _ids(self) -> dict[str, int | str]:
        model = self.processor.serialized_model_proto()
        names = ("bos_id", "pad_id", "eos_id", "unk_id", "mask_id", "vocab_size")
        return {name: getattr(self, name) for name in names} | {
            "sha256": hashlib.sha256(model).hexdigest()
        }


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"text is not valid Unicode ({error.reason} at {error.start})") from error
    return text
