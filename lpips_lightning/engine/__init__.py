"""Computes distances and input gradients of a frozen network, exactly, within a memory budget.

`lpips_lightning.distances.lpips` is the LPIPS formula in plain autograd. The engine computes the same values faster and
with less memory, because it knows two things in advance: the weights never change, and a distance is a scalar per pair.

# A metric update, file by file

1. `LPIPS.forward` (``network.py``) validates shapes and pixel values, converts any batch to flat RGB ``(M, 3, H, W)``,
   and describes it as `Pairs` (``engine/inputs.py``).
2. ``engine/dispatch.py``: `measure` sees that no gradient is required and calls `_distances_without_graph`.
3. ``engine/planner.py``: `choose_plan` asks ``engine/memory.py`` how many bytes the batch needs and returns a `Plan`:
   all images at once, some at a time, or row strips of one image.
4. ``engine/executor.py``: `pair_distances` runs the backbone. As soon as the features of both images exist at a layer,
   `layer_sum` (``kernels/head.py``) reduces them to one distance per pair, and they are freed. For row strips,
   ``engine/streaming.py`` does the same strip by strip.
5. `merge` (``batch.py``) sums the layers and restores the caller's batch shape. The metric adds sum and count.

# A loss step, file by file

1. As above, up to ``engine/dispatch.py``, which sees that `x` requires grad and calls ``engine/autograd.py``.
2. ``engine/autograd.py``: the forward pass of the autograd function `_Distances` computes the distances *and* their
   gradient w.r.t. the images. It saves this gradient, which is as large as the images, and no activations.
3. ``engine/planner.py`` plans with the gradient: all images at once, some at a time, or tiles of one image.
4. ``engine/executor.py``: `pair_gradient` runs the backbone forward; at each layer, `layer_sum_gradient`
   (``kernels/head.py``) returns the distance and the gradient w.r.t. the features; then the executor backpropagates
   these to the image. For tiles, ``engine/tiling.py`` calls `pair_gradient` once per tile.
5. ``loss.backward()`` multiplies the saved gradient by the gradient of the loss w.r.t. the distances. With
   ``create_graph=True``, plain autograd runs instead.

**Where is the loss's gradient computed?** In the forward pass: `pair_gradient` in ``engine/executor.py``, called by
``engine/autograd.py``.

**What about other distances?** They take the same way. `pair_distances` and `pair_gradient` call their `at_layer` as
soon as the features of a layer exist, the latter with a small autograd graph of that layer alone; the planner gives
them whole images, not strips or tiles.

**What does `memory_budget` do?** ``engine/planner.py`` chooses the fastest plan whose estimated peak memory fits the
budget (bytes in addition to weights and images); if none fits, it takes the smallest and warns. Without a budget, the
defaults in ``engine/constants.py`` apply. Calls on the plain autograd path (see dispatch) ignore the budget;
`frame_chunk` limits those. `LPIPS.plan` shows the plan before a call:

>>> from lpips_lightning import LPIPS
>>> LPIPS("embedded").plan((1, 3, 2048, 2048)).way
'rows'

# The files, in reading order

**dispatch** is the entry point. It uses the fused path (no graph, or a precomputed gradient) where possible, and plain
autograd for maps, masks, per-layer gradients, gradients w.r.t. both images, ``torch.compile`` and forward-mode AD.

**inputs** defines `Pairs`: two image batches, or images and precomputed features, with value ranges, dtype and memory
limits. It preprocesses parts of a batch and knows the derivative of the preprocessing.

**planner** chooses among ``whole``, ``images``, ``rows`` and ``tiles`` and caches the plan by shape and budget.

**memory** estimates peak memory: it runs the evaluation on ``meta`` tensors at two image sizes, counts live bytes, and
interpolates by the number of pixels.

**executor** runs the backbone forward and backward. On a CPU it walks the layer graph node by node, frees activations
after their last use and overwrites gradients in place. Small batches, other devices and unsupported backbones use the
module's own forward pass and ``torch.autograd``.

**autograd** wraps distance and gradient in one `torch.autograd.Function`.

**streaming** computes distances of huge images in row strips; line buffers hold the rows that the next windows need, so
nothing is computed twice.

**tiling** computes gradients of huge images in tiles with a halo that completes every receptive field; only feature
positions in the interior of a tile count.

**graph** converts a ``torch.fx`` trace to a list of operations with known receptive fields, or says why it cannot.

**windows** is the index arithmetic of convolutions and pools, which can also run on a range of rows.

**erosion** finds the feature positions whose whole receptive field is unmasked (``erode=True``).

**state** holds what is computed once per network: layer graph, memory estimates, plans.

**constants** holds the tuning constants. They change speed and memory only.
"""
