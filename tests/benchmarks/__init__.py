"""How fast, and in how much memory: ours, the peers, and the bare convolutions, side by side."""
