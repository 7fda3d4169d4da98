"""The recipe: schema, strict loading, references between stages, and the recipes that ship with prefopt.

Nothing in this package imports torch: `prefopt check` answers in under a second.
"""
