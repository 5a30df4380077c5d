"""How sessions travel between sidecars: WebSocket, both ends."""
