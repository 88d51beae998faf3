"""Logits over a vocabulary: a linear layer whose matrix product has a size that GPUs like."""

import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 64


class VocabularyHead(nn.Linear):
    """`nn.Linear` to one logit per id; in training on CUDA by `filled_linear`, the same numbers.

    Not where captions are written: a few rows would not pay for the copy of the matrix.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(..., D) to (..., vocabulary)."""
        if self.training and input.device.type == "cuda":
            return filled_linear(input, self.weight, self.bias)
        return super().forward(input)


def filled_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`F.linear(x, weight, bias)` by way of zeros up to a multiple of 64 rows of the matrix.

    The 64,010 ids of the released vocabulary make rows of logits that are not aligned to 16 bytes,
    so that matrix products take a slow path.
    """
    more = -len(weight) % ROWS
    if not more:
        return F.linear(x, weight, bias)
    weight, bias = F.pad(weight, (0, 0, 0, more)), F.pad(bias, (0, more))
    return F.linear(x, weight, bias)[..., :-more]
