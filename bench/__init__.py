"""The benchmark: how much of what the parts can do is left in the product.

Every figure is a ratio: the product, in processes as users run them, against a floor, the least
that could do the same work, measured in turns in the same run. `python -m bench --help` says how.
"""
