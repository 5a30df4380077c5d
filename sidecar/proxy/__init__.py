"""Proxy mode: in front of a real database, which applications talk to through this node."""
