"""Typed, torch-free options of every loss; the implementations register to them by name."""
