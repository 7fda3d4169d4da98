"""Preference data: sources, formats, templates, splits, and the embedded world. Imports no torch."""
