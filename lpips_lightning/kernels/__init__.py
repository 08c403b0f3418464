"""Fast tensor operations: convolutions with frozen weights, and the distance of a layer.

Kernels take tensors only and compute the values of plain PyTorch up to rounding.

- `lpips_lightning.kernels.conv2d`: faster convolutions with frozen float32 weights on a CPU; elsewhere, PyTorch's own.
- `lpips_lightning.kernels.winograd`: Winograd convolution for wide 3x3 layers with stride 1.
- `lpips_lightning.kernels.head`: distance of a layer and its gradient, in cache-sized blocks of positions.
- `lpips_lightning.kernels.head_triton`: the same on CUDA as one fused Triton kernel.
"""
