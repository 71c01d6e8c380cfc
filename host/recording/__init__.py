"""Records a session: its streams, its signals, and the chains of its rings with what became of them."""
