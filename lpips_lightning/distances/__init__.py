"""Distances on features: what two sets of activations give, whatever the network that they come from.

`lpips_lightning.distances.lpips` is the LPIPS formula, in plain autograd. Every distance is a `FeatureDistance`; the
``distance`` option of network, metric and loss names it, and `parse_distance` reads that option.
"""
