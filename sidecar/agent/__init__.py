"""The loops that carry changes: tail the feed, ship it to every target."""
