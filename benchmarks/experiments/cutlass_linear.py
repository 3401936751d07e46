"""Times the libraries of build_cutlass.sh at ViT-H's shapes: lin1 + GELU, qkv, proj, lin2.

python benchmarks/experiments/cutlass_linear.py FOLDER
"""

import argparse
import ctypes
import sys
from ctypes import c_size_t, c_void_p
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch
import torch.nn.functional as F

from benchmarks.timing import graph_microseconds

BUFFERS = 4
TOKENS = 4096
PRODUCTS = (
    ("lin1", "gelu", 5120, 1280),
    ("qkv", "bias", 3840, 1280),
    ("proj", "residual", 1280, 1280),
    ("lin2", "residual", 1280, 5120),
)
SCHEDULES = [(0, 1), *((order, swizzle) for order in (1, 2) for swizzle in (1, 2, 4, 8))]
WORKSPACE_BYTES = 64 << 20


class Product:
    """One product's matrices, rotated, and its expected output."""

    def __init__(self, operation: str, n: int, k: int) -> None:
        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, device="cuda").half()

        self.operation, self.n, self.k = operation, n, k
        self.a = [random(TOKENS, k) for _ in range(BUFFERS)]
        self.weight = [random(n, k) * k**-0.5 for _ in range(BUFFERS)]
        self.out = [random(TOKENS, n) for _ in range(BUFFERS)]
        self.bias = torch.randn(n, device="cuda")
        self.workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device="cuda")
        self.product = self.a[0].float() @ self.weight[0].float().t()

    def launch(self, library: ctypes.CDLL, index: int, order: int, swizzle: int) -> None:
        pointers = (self.a[index], self.weight[index], self.bias, self.out[index])
        status = library.run(
            *(c_void_p(tensor.data_ptr()) for tensor in pointers),
            TOKENS,
            self.n,
            self.k,
            torch.cuda.get_device_properties(0).multi_processor_count,
            order,
            swizzle,
            c_void_p(self.workspace.data_ptr()),
            c_size_t(WORKSPACE_BYTES),
            c_void_p(torch.cuda.current_stream().cuda_stream),
        )
        if status:
            raise RuntimeError(f"CUTLASS status {status}")

    def error(self, library: ctypes.CDLL) -> float:
        if self.operation == "residual":
            expected = self.product + self.out[0].float()
        else:
            self.out[0].fill_(float("nan"))
            expected = self.product + self.bias
            expected = F.gelu(expected) if self.operation == "gelu" else expected
        self.launch(library, 0, 0, 1)
        torch.cuda.synchronize()
        return float((self.out[0].float() - expected).norm() / expected.norm())

    def microseconds(self, library: ctypes.CDLL, order: int, swizzle: int) -> float:
        calls = [lambda i=i: self.launch(library, i, order, swizzle) for i in range(BUFFERS)]
        return graph_microseconds(calls * 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="output folder of build_cutlass.sh")
    folder: Path = parser.parse_args().folder
    for name, operation, n, k in PRODUCTS:
        product = Product(operation, n, k)
        rows = []
        for path in sorted(folder.glob(f"{operation}_*.so")):
            library = ctypes.CDLL(str(path))
            error = product.error(library)
            if not error < 2e-3:
                print(f"{name} {path.stem}: wrong, relative L2 {error:.1e}: not timed")
                continue
            times = [(product.microseconds(library, *s), s) for s in SCHEDULES]
            best, (order, swizzle) = min(times)
            rows.append((best, f"{path.stem:28s} order {order} swizzle {swizzle}", error))
        for best, label, error in sorted(rows):
            tflops = 2 * TOKENS * n * k / best / 1e6
            print(f"{name:5s} {best:6.1f} us {tflops:4.0f} TFLOP/s  {label}  error {error:.1e}")


if __name__ == "__main__":
    main()
