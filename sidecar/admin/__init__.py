"""The admin listener: what operators and Prometheus call."""
