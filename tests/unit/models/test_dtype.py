"""`dtype: auto` takes bfloat16 where a device computes in it faster, and float32 everywhere else."""

import pytest
import torch

from prefopt.models.loading import DTYPES, resolve_dtype


@pytest.mark.parametrize(
    ("available", "units", "expected"),
    [(True, True, torch.bfloat16), (True, False, torch.float32), (False, False, torch.float32)],
)
def test_auto_asks_for_units_and_not_for_emulation(
    monkeypatch: pytest.MonkeyPatch, available: bool, units: bool, expected: torch.dtype
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return units or including_emulation

    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert resolve_dtype("auto") is expected


def test_a_dtype_that_is_named_is_taken() -> None:
    assert all(resolve_dtype(name) is dtype for name, dtype in DTYPES.items())
