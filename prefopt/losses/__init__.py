"""Loss mathematics: pure functions of tensors, one per variant, with a table of names.

No model, tokenizer or configuration enters here. Shapes: B rows, T positions, V vocabulary entries.
"""
