"""Metrics, where they go, and what a person sees while a run is under way. Imports no torch."""

from prefopt.tracking.metrics import METRICS, Metric, describe
from prefopt.tracking.tracker import Tracker, open_tracker

__all__ = ["METRICS", "Metric", "Tracker", "describe", "open_tracker"]
