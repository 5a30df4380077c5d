"""What the commands do: clients of nodes that run, and the demo. The options are those of `cli`."""
