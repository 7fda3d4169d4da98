"""The embedded world of the quickstart: a procedural shop with a known gold reward. See `world`."""
