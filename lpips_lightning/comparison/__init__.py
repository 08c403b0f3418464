"""LPIPS of image files, pair by pair or all pairs, for ``lpips-lightning compare``."""
