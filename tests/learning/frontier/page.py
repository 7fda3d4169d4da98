"""What the page shows of the frontier."""

from __future__ import annotations

from tests.learning.frontier.score import Point as Point

KLS = (2.0, 5.0)
"""Nats at which methods are compared."""
