"""Documents that only those may read who were let in, served from two regions.

An example: it believes whoever says who they are. `permissions.py` is the part to copy, README.md
walks through it.
"""
