"""UFF's patch-wise contrastive loss, exact, with memory linear in the number of patches."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

# Numbers of one block of logits: large enough for the matrix products to run at full speed, small in memory.
BLOCK_LOGITS = {"cpu": 2**23, "cuda": 2**27}


def contrastive_loss(
    queries: torch.Tensor, keys: torch.Tensor, query_row: torch.Tensor, *, first_key: int = 0
) -> torch.Tensor:
    """2T times the cross entropy of the logits q k^T / T, q = queries[query_row], against the identity; T = 1.

    queries (m, d): the distinct rgb patches, unit rows; query_row (n,) int64: the one that belongs to each
    xyz patch (up to four xyz patches share one); keys (N, d): the xyz patches, unit rows. In one process
    n = N. With several, keys are those of all ranks, this rank's begin at row `first_key`, and the sum of
    the ranks' results is the loss of all N pairs. Without any pair the result is 0.
    """
    num_own, num_keys = len(query_row), max(len(keys), 1)
    own_keys = keys[first_key : first_key + num_own]
    pairs_of_query = torch.bincount(query_row, minlength=len(queries)).to(queries.dtype)
    log_sum = _WeightedLogSumExp.apply(queries, keys, pairs_of_query / num_keys)
    own_logits = (queries[query_row] * own_keys).sum()
    return 2 * (log_sum - own_logits / num_keys)


class _WeightedLogSumExp(torch.autograd.Function):
    """sum_i w_i log sum_j exp(q_i k_j) over blocks of rows i.

    The result is one number, so its gradients are known up to a factor as soon as a block's softmax is: the
    forward pass leaves them behind (2 N d numbers), and the logits are neither kept nor computed twice.
    """

    @staticmethod
    def forward(ctx: Any, queries: torch.Tensor, keys: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        total = queries.new_zeros(())
        grad_queries, grad_keys = torch.zeros_like(queries), torch.zeros_like(keys)
        num_rows = _block_rows(keys)
        buffer = keys.new_empty(min(num_rows, len(queries)), len(keys))
        for start in range(0, len(queries), num_rows):
            rows = slice(start, start + num_rows)
            block, weight = queries[rows], weights[rows, None]  # (b, d), (b, 1)
            logits = torch.mm(block, keys.T, out=buffer[: len(block)])  # (b, N)
            largest = logits.amax(dim=1, keepdim=True)
            exponentials = logits.sub_(largest).exp_()
            partition = exponentials.sum(dim=1, keepdim=True)
            total += (weight * (largest + partition.log())).sum()
            scale = weight / partition  # brings the exponentials to the weighted softmax
            grad_queries[rows] = exponentials @ keys * scale
            grad_keys.addmm_(exponentials.T, block * scale)
        ctx.save_for_backward(grad_queries, grad_keys)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        grad_queries, grad_keys = ctx.saved_tensors
        return grad * grad_queries, grad * grad_keys, None


def _block_rows(keys: torch.Tensor) -> int:
    return max(1, BLOCK_LOGITS.get(keys.device.type, BLOCK_LOGITS["cpu"]) // max(len(keys), 1))
