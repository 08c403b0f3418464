"""LPIPS of image files, pair by pair or all with all: what ``lpips-lightning compare`` does."""
