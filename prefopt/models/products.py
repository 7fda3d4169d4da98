"""Matrix products on processors on which torch's first choice of a library is half as fast as its second.

On x86, torch leaves products of float32 to Intel's MKL, which computes with half of the vector width that other
vendors' processors have (AVX2 where there is AVX-512); oneDNN, which torch carries too, looks at the processor alone.
Here torch's own kernels for `mm` and `addmm` are replaced for the whole process by ones that hand large products to
oneDNN, in float32 as before. Autograd, profilers and counters of operations see the same calls as ever.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SWITCH = "PREFOPT_PRODUCTS"
"""`torch` keeps torch's own kernels, `onednn` replaces them on any processor; by default the processor decides."""
LARGE = 1 << 21
"""Multiplications from which oneDNN is the quicker one: its call takes some 15 microseconds."""

_kept: list[Any] = []


def use_quick_products() -> bool:
    """Replace torch's kernels where that is known to help, for the rest of the process; once is enough.

    Returns:
        Whether they are replaced.
    """
    if not _kept and (_wanted() and _possible()):
        _kept.append(_replaced())
    return bool(_kept)


def use_torch_products() -> None:
    """Undo it."""
    _kept.clear()


def _wanted() -> bool:
    told = os.environ.get(SWITCH, "")
    if told in ("torch", "onednn"):
        return told == "onednn"
    try:
        processor = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:  # not Linux
        return False
    return "AuthenticAMD" in processor and " avx512f " in processor


def _possible() -> bool:
    has = bool(torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return has and hasattr(torch.ops.mkldnn, "_linear_pointwise") and hasattr(torch.library, "get_kernel")


def _replaced() -> torch.library.Library:
    # An operator of torch's own compiler: rows times the transpose of a matrix, whatever the strides of both.
    rows_by: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise.default
    mm_of_torch, addmm_of_torch = (torch.library.get_kernel(f"aten::{name}", "CPU") for name in ("mm", "addmm"))

    def mm(keys: Any, left: Tensor, right: Tensor) -> Tensor:
        if _large(left, right):
            return rows_by(left, right.t(), None, "none", [], "")
        return mm_of_torch.call_boxed(keys, left, right)  # type: ignore[no-any-return]

    def addmm(keys: Any, bias: Tensor, left: Tensor, right: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
        if bias.dim() == 1 and bias.dtype is left.dtype and beta == alpha == 1 and _large(left, right):
            return rows_by(left, right.t(), bias, "none", [], "")
        return addmm_of_torch.call_boxed(keys, bias, left, right, beta=beta, alpha=alpha)  # type: ignore[no-any-return]

    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*Overriding a previously registered kernel")
        for name, kernel in (("mm", mm), ("addmm", addmm)):
            library.impl(  # type: ignore[no-untyped-call]
                name, kernel, "CPU", with_keyset=True, allow_override=True
            )
    return library


def _large(left: Tensor, right: Tensor) -> bool:
    # Where shapes do not fit, torch's own kernel says so.
    return (
        left.dtype is right.dtype is torch.float32
        and left.dim() == right.dim() == 2
        and left.shape[1] == right.shape[0]
        and left.shape[0] * right.numel() >= LARGE
    )
