"""Lets torchvision be imported beside a torch build that its compiled operators were not made for.

Copied into the host's site-packages and loaded by a .pth file at every start of that interpreter, so it does nothing
but leave a finder behind. torchvision registers shape functions for the operators `nms` and `qnms` while it is
imported, and fails when its binary could not be loaded and so did not declare them. The declarations below are enough
for that: the operators themselves stay without an implementation, and no test needs one.
"""

import sys

SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


class DeclareOnImport:
    """A finder that finds nothing, but sees when the module that needs the declarations is about to be imported."""

    library = None  # torch drops the declarations when the Library object dies

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision._meta_registrations" and self.library is None:
            import torch

            missing = [op for op in SCHEMAS if not hasattr(torch.ops.torchvision, op)]
            self.library = torch.library.Library("torchvision", "FRAGMENT")
            for op in missing:
                self.library.define(op + SCHEMAS[op])
        return None


sys.meta_path.insert(0, DeclareOnImport())
