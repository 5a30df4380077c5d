"""Who may talk to a node, and how that is proved."""
