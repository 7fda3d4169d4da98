"""The page a person reads after a run: one HTML file that opens offline, and its plots as PNG. Imports no torch."""

from prefopt.report.page import render

__all__ = ["render"]
