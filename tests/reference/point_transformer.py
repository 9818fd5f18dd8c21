"""The group encoder layer by layer, as published; the twin of the folded form."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.point_transformer.group_encoder import GroupEncoder


def plain_group_tokens(encoder: GroupEncoder, cloud: Tensor) -> Tensor:
    """Tokens (G, C) of the groups (G, M, 3) of one cloud, with the parameters and statistics of `encoder`."""
    conv1, norm1, relu, conv2 = encoder.first_conv
    conv3, norm2, _, conv4 = encoder.second_conv
    hidden = relu(_batchnorm(norm1, conv1(cloud.transpose(1, 2)), encoder.batchnorm))
    feature = conv2(hidden)  # (G, 256, M)
    maximum = feature.amax(2, keepdim=True).expand_as(feature)
    joint = conv3(torch.cat([maximum, feature], dim=1))  # (G, 512, M)
    return conv4(relu(_batchnorm(norm2, joint, encoder.batchnorm))).amax(2)


def _batchnorm(norm: nn.BatchNorm1d, values: Tensor, statistics: str) -> Tensor:
    if statistics == "cloud":  # as in training, but without moving the running statistics
        return F.batch_norm(values, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
    return F.batch_norm(values, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
