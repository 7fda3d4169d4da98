"""Loading models, hanging roles on one base, running them forward and sampling from them."""
