"""What a program of its own may use of the sidecar; `sidecar/__init__.py` has the names.

Thin: everything is decided where the sidecar itself has it decided.
"""
