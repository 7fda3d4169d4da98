"""What a nat of KL costs, and how the price follows a target."""

from __future__ import annotations

from typing import Any

_MOST_ERROR = 0.2  # arXiv 1909.08593, section 2.2


class KLController:
    """The coefficient of the KL, fixed or adaptive (arXiv 1909.08593, section 2.2).

    With e = clip(KL / target - 1, -0.2, 0.2) the coefficient is multiplied by 1 + e · episodes / horizon after every
    rollout, and kept within bounds: without an upper one it can grow while nothing brings the policy back.

    Args:
        coefficient: At the beginning.
        target: KL per completion, nats; None keeps the coefficient.
        horizon: Episodes over which an error of 0.2 multiplies the coefficient by about e^0.2.
        bounds: Least and largest coefficient.

    Raises:
        ValueError: When the bounds are not in order.
    """

    def __init__(
        self,
        coefficient: float,
        target: float | None = None,
        horizon: int = 10_000,
        bounds: tuple[float, float] = (1e-4, 10.0),
    ) -> None:
        if not 0 <= bounds[0] <= bounds[1]:
            raise ValueError(f"bounds must be in order and not negative: {bounds}")
        self.coefficient = coefficient
        self._target = target
        self._horizon = horizon
        self._bounds = bounds

    def update(self, kl: float, episodes: int) -> None:
        """Adapt the coefficient.

        Args:
            kl: Of the rollout's completions, mean, nats.
            episodes: Of the rollout, over all ranks.
        """
        if self._target is None:
            return
        error = min(max(kl / self._target - 1, -_MOST_ERROR), _MOST_ERROR)
        least, most = self._bounds
        self.coefficient = min(max(self.coefficient * (1 + error * episodes / self._horizon), least), most)

    def state_dict(self) -> dict[str, Any]:
        """What must be kept to go on."""
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what was kept."""
        self.coefficient = float(state["coefficient"])
