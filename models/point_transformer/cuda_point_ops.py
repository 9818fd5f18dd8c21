"""Groups on the GPU by pointnet2_ops and knn_cuda, the packages that the release uses; both are optional.

They differ from `point_ops`, the same on the CPU, in ties: pointnet2_ops fuses multiplications with additions and takes
another of several points that are equally far; knn_cuda compares float32 distances, a k-d tree float64 ones.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from utils.files import in_short

KNN_CUDA_WHEEL = "https://github.com/unlimblue/KNN_CUDA/releases/download/0.2/KNN_CUDA-0.2-py3-none-any.whl"
POINTNET2_SOURCE = (
    "git+https://github.com/erikwijmans/Pointnet2_PyTorch.git"
    "#egg=pointnet2_ops&subdirectory=pointnet2_ops_lib"
)
REMEDY = (
    f"pip install --upgrade {KNN_CUDA_WHEEL} && "
    f'pip install --no-build-isolation "{POINTNET2_SOURCE}" (requirement-cuda.txt), or --point_ops cpu'
)


@dataclass(frozen=True)
class CudaPointOps:
    """What the two packages offer; all tensors are on the GPU, contiguous, float32.

    furthest_point_sample: (B, N, 3), n -> (B, n) int32; gather_operation: (B, C, N), (B, n) int32 -> (B, C, n);
    knn: KNN(k, transpose_mode=True), which gives of (B, N, 3), (B, G, 3) the distances and indices (B, G, k), int64.
    """

    furthest_point_sample: Callable[[Tensor, int], Tensor]
    gather_operation: Callable[[Tensor, Tensor], Tensor]
    knn: Callable[..., Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]]

    def group(self, points: Tensor, num_group: int, group_size: int) -> tuple[Tensor, Tensor]:
        """As `point_ops.group_points`, of a cloud (N, 3) on the GPU: groups (G, M, 3) and their centers (G, 3)."""
        count = len(points)
        cloud = points.contiguous()[None]  # (1, N, 3)
        with torch.cuda.device(
            points.device
        ):  # pointnet2_ops launches on the current device, whatever its tensors say
            index = self.furthest_point_sample(cloud, min(num_group, count))
            centers = self.gather_operation(points.T.contiguous()[None], index)  # (1, 3, N) -> (1, 3, G)
            centers = centers.transpose(1, 2).contiguous()
            _, neighbors = self.knn(min(group_size, count), transpose_mode=True)(cloud, centers)
        return points[neighbors[0]] - centers[0][:, None], centers[0]


def load_cuda_point_ops() -> CudaPointOps:
    """The functions of the two packages; knn_cuda compiles its own when it is imported first.

    Raises ValueError with the commands that install them, where one is not there or can't be loaded.
    """
    utils = _imported("pointnet2_ops.pointnet2_utils")
    knn_cuda = _imported("knn_cuda")
    return CudaPointOps(utils.furthest_point_sample, utils.gather_operation, knn_cuda.KNN)


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever compiling and loading may raise
        reason = in_short(str(error)) or type(error).__name__
        raise ValueError(f"--point_ops cuda: {name} can't be loaded ({reason}); install: {REMEDY}") from error
