"""The group encoder of Point-MAE and Point-BERT (a small PointNet), in a form that skips what can be folded.

Per point 3 -> 128 (BatchNorm, ReLU) -> 256; the group's maximum beside each point's own feature, 512 -> 512
(BatchNorm, ReLU) -> C; maximum over the group. Nothing nonlinear stands between the second and the third
layer: the third's half for points acts on the 128 hidden values through the product of the two matrices, its
half for the maximum is computed once a group. By the same linearity the statistics that the BatchNorms take of
a cloud are known before their inputs exist: the first's from mean and covariance of the coordinates, the
second's from those of the hidden values. What is left runs in chunks of groups that stay in the cache, 41
instead of 64 GMAC at 1024 groups of 128 points.

Alphabet: B clouds, G groups, M points a group, C = `encoder_dim`.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BatchNormStatistics = Literal["cloud", "running"]
Chunks = tuple[Tensor, ...]  # a cloud's groups in pieces (g, M, 3)
Dense = tuple[Tensor, Tensor]  # weight (out, in) and bias (out,)

HIDDEN_DIM = 128
POINT_DIM = 256
JOINT_DIM = 2 * POINT_DIM  # the group's maximum first, then the point's own feature
POINTS_PER_CHUNK = {"cpu": 8192, "cuda": 1 << 17}  # 16 MB of activations, about a CPU's cache; a whole cloud


class GroupEncoder(nn.Module):
    """One token for each group of points.

    The submodules hold the parameters under the names of the published checkpoints. `batchnorm` says whose
    statistics both BatchNorms use: "cloud" = biased mean and variance over all G * M points of each cloud, so
    that a batch gives what its clouds give one by one; "running" = the checkpoint's. Neither depends on
    train() or eval(), and no gradient is kept.
    """

    def __init__(self, encoder_dim: int, *, batchnorm: BatchNormStatistics = "cloud") -> None:
        super().__init__()
        self.batchnorm = batchnorm
        self.first_conv = nn.Sequential(
            nn.Conv1d(3, HIDDEN_DIM, 1),
            nn.BatchNorm1d(HIDDEN_DIM),
            nn.ReLU(),
            nn.Conv1d(HIDDEN_DIM, POINT_DIM, 1),
        )
        self.second_conv = nn.Sequential(
            nn.Conv1d(JOINT_DIM, JOINT_DIM, 1),
            nn.BatchNorm1d(JOINT_DIM),
            nn.ReLU(),
            nn.Conv1d(JOINT_DIM, encoder_dim, 1),
        )

    @torch.no_grad()
    def forward(self, groups: Tensor) -> Tensor:
        """(B, G, M, 3) in metres, relative to the centres -> (B, G, C) in the parameters' dtype.

        Statistics are float32 sums and float64 algebra whatever the parameters' dtype.
        """
        return torch.stack([self._encode(cloud) for cloud in groups])

    def _encode(self, cloud: Tensor) -> Tensor:
        """(G, M, 3) -> (G, C)."""
        chunks = cloud.split(max(1, POINTS_PER_CHUNK[cloud.device.type] // cloud.shape[1]))
        first_layer = self._first_layer(cloud)
        local, group_shift = self._third_layer(chunks, first_layer)
        weight, bias = _dense(self.second_conv[3])
        tokens = []
        for chunk, shift in zip(chunks, group_shift.split(len(chunks[0])), strict=True):
            joint = F.linear(_hidden(chunk, first_layer), local)  # (g, M, 512)
            joint.add_(shift[:, None]).relu_()
            tokens.append(F.linear(joint, weight).amax(dim=1))
        return torch.cat(tokens).add_(bias)

    def _first_layer(self, cloud: Tensor) -> Dense:
        """Weight (128, 3) and bias (128,) of the first convolution with its BatchNorm folded in."""
        layer, norm = self.first_conv[0], self.first_conv[1]
        weight, bias = (parameter.double() for parameter in _dense(layer))
        mean, variance = norm.running_mean, norm.running_var
        if self.batchnorm == "cloud":
            points = cloud.reshape(-1, 3).double()
            centroid = points.mean(dim=0)
            covariance = (points - centroid).T @ (points - centroid) / len(points)
            mean, variance = weight @ centroid + bias, _quadratic(weight, covariance)
        scale, offset = _batchnorm_affine(norm, mean, variance)
        dtype = layer.weight.dtype
        return (scale[:, None] * weight).to(dtype), (scale * bias + offset).to(dtype)

    def _third_layer(self, chunks: Chunks, first_layer: Dense) -> tuple[Tensor, Tensor]:
        """The second and third layer as one, with its BatchNorm folded in.

        Returns the weight (512, 128) on a point's hidden values and the shift (G, 512) that its group adds.
        """
        weight, bias = (parameter.double() for parameter in _dense(self.first_conv[3]))
        joint_weight, joint_bias = (parameter.double() for parameter in _dense(self.second_conv[0]))
        on_maximum, on_point = joint_weight.split(POINT_DIM, dim=1)
        local = on_point @ weight
        maximum = self._group_maximum(chunks, first_layer).double()
        shift = (maximum + bias) @ on_maximum.T + (on_point @ bias + joint_bias)

        norm = self.second_conv[1]
        mean, variance = norm.running_mean, norm.running_var
        if self.batchnorm == "cloud":
            mean, variance = _joint_statistics(chunks, first_layer, local, shift)
        scale, offset = _batchnorm_affine(norm, mean, variance)
        dtype = self.second_conv[0].weight.dtype
        return (scale[:, None] * local).to(dtype), (scale * shift + offset).to(dtype)

    def _group_maximum(self, chunks: Chunks, first_layer: Dense) -> Tensor:
        """Maximum over each group of the second layer without its bias, (G, 256)."""
        weight, _ = _dense(self.first_conv[3])
        return torch.cat([F.linear(_hidden(chunk, first_layer), weight).amax(dim=1) for chunk in chunks])


def _hidden(chunk: Tensor, first_layer: Dense) -> Tensor:
    """(g, M, 3) -> the hidden values (g, M, 128)."""
    weight, bias = first_layer
    return F.linear(chunk.to(weight.dtype), weight, bias).relu_()


def _joint_statistics(
    chunks: Chunks, first_layer: Dense, local: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (512,) over all points of local @ hidden + shift of the point's group.

    The variance of the sum is that of the points' part, that of the groups' part and twice their covariance;
    a shift is constant in its group, so the covariance needs only the groups' mean hidden values.
    """
    group_means = []
    product = torch.zeros(HIDDEN_DIM, HIDDEN_DIM, dtype=torch.float64, device=shift.device)
    for chunk in chunks:
        hidden = _hidden(chunk, first_layer).float()
        group_means.append(hidden.mean(dim=1))
        rows = hidden.view(-1, HIDDEN_DIM)
        product += rows.T @ rows
    group_mean = torch.cat(group_means).double()
    hidden_mean, shift_mean = group_mean.mean(dim=0), shift.mean(dim=0)
    points = len(group_mean) * chunks[0].shape[1]
    covariance = product / points - torch.outer(hidden_mean, hidden_mean)
    shift_part = shift - shift_mean
    local_part = (group_mean - hidden_mean) @ local.T
    variance = _quadratic(local, covariance) + ((shift_part + 2 * local_part) * shift_part).mean(dim=0)
    return local @ hidden_mean + shift_mean, variance


def _batchnorm_affine(norm: nn.BatchNorm1d, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and offset, float64, that `norm` applies to a channel with these statistics."""
    scale = norm.weight.double() / (variance.double().clamp(min=0) + norm.eps).sqrt()
    return scale, norm.bias.double() - scale * mean.double()


def _dense(layer: nn.Conv1d) -> Dense:
    """Weight (out, in) and bias (out,) of a convolution of width 1."""
    return layer.weight.squeeze(-1), layer.bias


def _quadratic(rows: Tensor, matrix: Tensor) -> Tensor:
    """row @ matrix @ row for each row, (n, d), (d, d) -> (n,)."""
    return ((rows @ matrix) * rows).sum(dim=1)
