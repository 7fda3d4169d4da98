"""Options of the DPO losses; `prefopt.losses.dpo` implements one function for each name."""

from __future__ import annotations

from typing import Literal

DPOLossType = Literal["sigmoid", "cdpo", "robust", "hinge", "ipo"]
