"""Released libraries on fulgurite: ``make test-clients``, in an environment of its own."""

import torch

# torchvision of PyPI has its operators for CUDA's torch; its Python half asks for these two names.
try:
    import torchvision  # noqa: F401
except RuntimeError:
    _names = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _names.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
