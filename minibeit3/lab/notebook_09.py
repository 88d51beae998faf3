"""Exercises of notebook 09."""

from collections.abc import Callable, Sequence
from hashlib import blake2b

import torch
import torch.nn.functional as F
from torch import Tensor

from minibeit3.lab.exercises import Exercise, register
from minibeit3.losses import contrastive_loss


def matching_loss(image: Tensor, text: Tensor, scale: float) -> Tensor:
    """Cross-entropy of finding one's partner, mean of both directions, a scalar.

    image, text: unit vectors (B, D), row i of both belongs together. scale: inverse temperature.
    """
    return contrastive_loss(image, text, torch.tensor(scale))


def _check_loss(own: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    for seed, (rows, width, scale) in enumerate(((5, 8, 14.0), (7, 3, 3.0), (4, 6, 1.0))):
        g = torch.Generator().manual_seed(seed)
        image, text = (F.normalize(torch.randn(rows, width, generator=g), dim=1) for _ in "it")
        found = own(image.clone(), text.clone(), scale)
        assert isinstance(found, Tensor), f"Return a tensor, not {type(found).__name__}."
        assert found.ndim == 0, f"Return one number, not {tuple(found.shape)}."
        alike, target = scale * image @ text.T, torch.arange(rows)
        ways = F.cross_entropy(alike, target), F.cross_entropy(alike.T, target)
        wanted = (ways[0] + ways[1]) / 2

        def near(value: Tensor | float, found: Tensor = found) -> bool:
            return torch.allclose(found, torch.as_tensor(value, dtype=found.dtype), atol=1e-5)

        assert not near(ways[0]), (
            "You asked every picture for its text. Ask every text for its picture too: the same "
            "matrix, transposed."
        )
        assert not near(ways[1]), (
            "You asked every text for its picture. Ask every picture for its text too."
        )
        assert not near(ways[0] + ways[1]), "That is the sum of both directions: take their mean."
        assert not near(rows * wanted), f"You summed over the {rows} rows: take the mean."
        plain = matching_loss(image, text, 1.0)
        assert near(wanted) or not near(plain), (
            f"The scale has no say: multiply the similarities by {scale:g} before the softmax."
        )
        assert near(wanted) or not near(matching_loss(image, text, 1 / scale)), (
            f"You divided by the scale. It is 1 / temperature: multiply by {scale:g}."
        )
        whole = -(alike.flatten().log_softmax(0).view(rows, rows).diagonal()).mean()
        assert not near(whole), (
            "You took one softmax over the whole matrix. Each row is a question of its own."
        )
        assert near(wanted), (
            f"Here the loss is {wanted:.4f}, you got {found:.4f}: minus the mean logarithm of the "
            "probability on the diagonal, by rows and by columns, then the mean of the two."
        )
        sharp = own(image, text, 2000.0)
        assert torch.isfinite(sharp), (
            "A scale of 2000 overflows exp. Use log_softmax or cross_entropy."
        )


def found_within(similarity: Tensor, right: Tensor, k: int) -> float:
    """Share of queries with a right candidate among the k most similar; a tie is no find.

    similarity: float (Q, R). right: bool (Q, R), True = a right answer, one or several a query.
    """
    best = similarity.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
    before = (~right & (similarity >= best)).sum(dim=1)
    return (before < k).float().mean().item()


def _check_found(own: Callable[[Tensor, Tensor, int], float]) -> None:
    for seed, (queries, candidates, k) in enumerate(((6, 9, 2), (11, 7, 3), (8, 8, 1))):
        g = torch.Generator().manual_seed(seed)
        similarity = torch.randn(queries, candidates, generator=g)
        right = torch.rand(queries, candidates, generator=g) < 0.15
        right[torch.arange(queries), torch.randint(candidates, (queries,), generator=g)] = True
        wanted = found_within(similarity, right, k)
        found = own(similarity.clone(), right.clone(), k)
        assert isinstance(found, float | int) or (isinstance(found, Tensor) and found.ndim == 0), (
            f"Return one number, not {type(found).__name__}."
        )
        found = float(found)
        assert 0 <= found <= 1, f"{found:g} is no share: divide by the {queries} queries."
        top = right.gather(1, similarity.topk(k, dim=1).indices)
        if abs(found - wanted) > 1e-6:
            count = top.float().sum(dim=1)
            every = right.sum(dim=1)
            assert abs(found - (count / every).mean().item()) > 1e-6, (
                "You counted how many of the right ones are found. One is enough: any of two "
                "identical pictures is a find."
            )
            assert abs(found - (count == every).float().mean().item()) > 1e-6, (
                "You asked for all right ones. One among the first k is enough."
            )
            least = right.gather(1, similarity.topk(k, dim=1, largest=False).indices)
            assert abs(found - least.any(dim=1).float().mean().item()) > 1e-6, (
                "You took the least similar ones: sort downwards."
            )
            raise AssertionError(
                f"{queries} queries, {candidates} candidates, k = {k}: {wanted:.3f} of the queries "
                f"have a right one among the first {k}, you say {found:.3f}."
            )
    one = torch.zeros(4, 6), F.one_hot(torch.tensor([0, 2, 5, 0]), 6).bool()
    for k in (1, 3):
        found = float(own(*one, k))
        assert found == 0, (
            f"A model that finds everything equally similar gets {found:g} from you at k = {k}. A "
            "wrong one that ties stands before the right one: count those with >=."
        )


Embed = Callable[[list[str]], Tensor]


def class_vectors(embed: Embed, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """One unit vector per class, (names, D): the direction of the mean over all templates.

    embed: texts to unit vectors (texts, D). templates: texts with {} in the place of the name.
    """
    vectors = [embed([t.format(name) for t in templates]).mean(dim=0) for name in names]
    return F.normalize(torch.stack(vectors), dim=-1)


def _embedder(width: int, seed: int) -> Embed:
    """Unit vectors that depend on every letter of a text, of unlike kinds for unlike texts."""

    def embed(texts: list[str]) -> Tensor:
        assert isinstance(texts, list | tuple), "embed takes a list of texts, not one text."
        rows = []
        for text in texts:
            assert "{" not in text, f"The name is missing in {text!r}: use template.format(name)."
            number = int.from_bytes(blake2b(f"{seed}{text}".encode(), digest_size=6).digest())
            rows.append(torch.randn(width, generator=torch.Generator().manual_seed(number)))
        return F.normalize(torch.stack(rows), dim=-1)

    return embed


def _check_classes(own: Callable[[Embed, Sequence[str], Sequence[str]], Tensor]) -> None:
    for seed, (names, templates, width) in enumerate(
        (
            (["red", "blue", "green"], ["a {} thing", "it is {}"], 8),
            (["ring", "star"], ["a {}", "one {}, drawn", "the {} here"], 5),
            (["a", "b", "c", "d"], ["{}"], 6),
        )
    ):
        embed = _embedder(width, seed)
        found = own(embed, names, templates)
        assert isinstance(found, Tensor), f"Return a tensor, not {type(found).__name__}."
        assert tuple(found.shape) == (len(names), width), (
            f"{len(names)} classes and vectors of width {width}, you return {tuple(found.shape)}: "
            "one row for each class, whatever the number of templates."
        )
        wanted = class_vectors(embed, names, templates)
        every = torch.stack([embed([t.format(n) for t in templates]) for n in names])

        def near(value: Tensor, found: Tensor = found) -> bool:
            return torch.allclose(found, value, atol=1e-5)

        if near(wanted):
            continue
        assert not near(every[:, 0]), (
            f"You used the first template alone. Embed the name in each of the {len(templates)}."
        )
        assert not near(every.mean(dim=1)) and not near(every.sum(dim=1)), (
            "The mean of unit vectors is shorter than 1, by another factor for each class, so the "
            "classes would not compete evenly: normalise after the mean."
        )
        mixed = every.transpose(0, 1).reshape(len(names), len(templates), width).mean(dim=1)
        assert not near(F.normalize(mixed, dim=-1)), (
            "You averaged rows of different classes. If the texts go name by name, the vectors "
            "are (names, templates, D); if template by template, (templates, names, D)."
        )
        raise AssertionError(
            f"{len(names)} names in {len(templates)} templates: some vector points elsewhere. "
            "Embed each name in each template, take the mean of each name, then normalise it."
        )


register(
    Exercise(
        name="matching_loss",
        difficulty=1,
        minutes=7,
        check=_check_loss,
        hints=(
            "scale * image @ text.T is (B, B): row i asks which text belongs to picture i.",
            "The right answer of row i is column i, so the targets are 0, 1, ..., B - 1.",
            "F.cross_entropy(alike, targets) for the rows, the same of alike.T for the columns.",
        ),
        reference=matching_loss,
    )
)
register(
    Exercise(
        name="found_within",
        difficulty=2,
        minutes=8,
        check=_check_found,
        hints=(
            "For each query take the similarity of the best of its right candidates.",
            "Count the wrong candidates that are as similar or more: they stand before it.",
            "The query is a find when fewer than k stand before it. The share is the mean of that.",
        ),
        reference=found_within,
    )
)
register(
    Exercise(
        name="class_vectors",
        difficulty=1,
        minutes=6,
        check=_check_classes,
        hints=(
            "[template.format(name) for template in templates] are the texts of one class.",
            "embed(those texts).mean(dim=0) is the middle of their vectors.",
            "torch.stack the classes, then F.normalize(..., dim=-1): a mean is shorter than 1.",
        ),
        reference=class_vectors,
    )
)
