"""The decisions of replication as pure functions.

Nothing here waits, reads a clock, draws a random number, logs, or knows of Redis or HTTP.
"""
