"""Where the image pairs of a large run lie, read unit by unit: folders, lists, and archives, on disks and URLs."""
