"""Intervals and tests, with numpy alone; nothing here knows about models."""
