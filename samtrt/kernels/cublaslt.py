"""Matrix products through cuBLASLt, straight: the same algorithm in every run, sums in fp32.

Not through torch, whose products follow settings of the whole process (reduced-precision sums,
``use_deterministic_algorithms``, the preferred library) and keep a workspace for ever. The
algorithm is the first of cuBLASLt's heuristic: choosing by time would make results vary from run to
run, and gains nothing over a whole encoder (docs/performance.md).
"""

import ctypes
import weakref
from ctypes import byref, c_float, c_int, c_int32, c_size_t, c_uint64, c_void_p
from functools import cache

import torch
from torch import Tensor

from samtrt.errors import EngineError

# cublasLt.h and library_types.h
_COMPUTE_32F = 68
_R_32F = 0
_TYPES = {torch.float16: 2, torch.bfloat16: 14}
_DESC_TRANSA, _DESC_EPILOGUE, _DESC_BIAS_POINTER = 3, 7, 8
_EPILOGUE_BIAS = 4
_PREFERENCE_MAX_WORKSPACE_BYTES = 1
_OP_T = 1
_NOT_SUPPORTED = 15

WORKSPACE_BYTES = 32 << 20  # what cuBLAS itself takes on Hopper
CANDIDATES = 16


class _Heuristic(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algo", c_uint64 * 8),
        ("workspace", c_size_t),
        ("state", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


@cache
def _library() -> ctypes.CDLL:
    version = (torch.version.cuda or "").split(".")[0]
    name = f"libcublasLt.so.{version}"  # torch has loaded it already
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise EngineError(f"{name} of torch's CUDA was not found; reinstall torch") from error


def _destroy(made: list[tuple[str, c_void_p]]) -> None:
    for call, descriptor in made:
        getattr(_library(), call)(descriptor)


def _check(status: int, call: str) -> None:
    if status:
        raise EngineError(f"cuBLASLt: {call} failed with status {status}")


@cache
def _handle(device: int) -> c_void_p:
    handle = c_void_p()
    with torch.cuda.device(device):
        _check(_library().cublasLtCreate(byref(handle)), "create")
    return handle


def make_workspace(device: torch.device) -> Tensor:
    """Scratch memory for products that run one after another on one stream."""
    return torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)


class Products:
    """Products of any shape, on one device; on the CPU, where the interpreter runs, torch's.

    One after another on one stream: they share scratch memory. What a shape needs is made in its
    first call, which no graph may record.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._made: dict[tuple[int, ...], Product] = {}
        self._workspace = make_workspace(device) if device.type == "cuda" else None

    def __call__(
        self,
        a: Tensor,
        weight: Tensor,
        out: Tensor,
        bias: Tensor | None = None,
        accumulate: bool = False,
    ) -> None:
        """``out = a @ weight.T``, with a bias or added to ``out``; see ``Product``.

        Args:
            accumulate: whether the product is added to ``out``; not with a bias.
        """
        if self._workspace is None:
            if bias is None:
                out.addmm_(a, weight.t(), beta=int(accumulate))
            else:
                torch.addmm(bias, a, weight.t(), out=out)
            return
        key = (a.shape[0], *weight.shape, bias is not None, accumulate)
        if key not in self._made:
            self._made[key] = Product(
                *(a.shape[0], weight.shape[0], weight.shape[1]),
                self._dtype,
                bias is not None,
                self._workspace,
                accumulate,
            )
        self._made[key](a, weight, bias, out)


class Product:
    """``out = a @ weight.T + bias`` or ``out += a @ weight.T`` for one shape and type.

    Attributes:
        candidates: how many algorithms there are to choose from.
        choice: the one in use; the first unless somebody sets another.
    """

    def __init__(
        self,
        rows: int,
        out_channels: int,
        in_channels: int,
        dtype: torch.dtype,
        bias: bool,
        workspace: Tensor,
        accumulate: bool | None = None,
    ) -> None:
        """
        Args:
            rows: M of ``a`` [M, K].
            out_channels: N of ``weight`` [N, K].
            in_channels: K.
            dtype: fp16 or bf16, of every matrix and of the bias; sums are fp32.
            bias: whether a bias is added.
            workspace: from ``make_workspace``; its device is the product's.
            accumulate: whether the product is added to ``out``; by default where there is no bias.

        Raises:
            EngineError: cuBLASLt has no algorithm for it.
        """
        library = _library()
        self._workspace = workspace
        self._handle = _handle(workspace.device.index)
        self._bias = bias
        self._beta = float(not bias if accumulate is None else accumulate)
        self._shape = (rows, out_channels, in_channels)
        self._made: list[tuple[str, c_void_p]] = []  # descriptors, and what destroys each
        weakref.finalize(self, _destroy, self._made).atexit = False
        # Row-major out = a weightᵀ is column-major outᵀ = weight aᵀ.
        self._desc = c_void_p()
        _check(library.cublasLtMatmulDescCreate(byref(self._desc), _COMPUTE_32F, _R_32F), "desc")
        self._made.append(("cublasLtMatmulDescDestroy", self._desc))
        self._set(_DESC_TRANSA, c_int32(_OP_T))
        if bias:
            self._set(_DESC_EPILOGUE, c_int32(_EPILOGUE_BIAS))
        self._weight = self._layout(dtype, in_channels, out_channels)
        self._a = self._layout(dtype, in_channels, rows)
        self._out = self._layout(dtype, out_channels, rows)
        self._algorithms = self._heuristics()
        if not self._algorithms:
            raise EngineError(
                f"cuBLASLt has no algorithm for a product of {rows} × {in_channels} with "
                f"{in_channels} × {out_channels} on this GPU; use the tensorrt or cpu backend"
            )
        self.candidates = len(self._algorithms)
        self.choice = 0

    def __call__(self, a: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """Launches on the current stream of the workspace's GPU; shapes as at construction, all
        contiguous."""
        if bias is not None:
            self._set(_DESC_BIAS_POINTER, c_void_p(bias.data_ptr()))
        alpha, beta = c_float(1.0), c_float(self._beta)
        pointer = c_void_p(out.data_ptr())
        algorithm = self._algorithms[self.choice]
        with torch.cuda.device_of(self._workspace):
            status = _library().cublasLtMatmul(
                self._handle,
                self._desc,
                byref(alpha),
                c_void_p(weight.data_ptr()),
                self._weight,
                c_void_p(a.data_ptr()),
                self._a,
                byref(beta),
                pointer,
                self._out,
                pointer,
                self._out,
                byref(algorithm.algo),
                c_void_p(self._workspace.data_ptr()),
                c_size_t(WORKSPACE_BYTES),
                c_void_p(torch.cuda.current_stream().cuda_stream),
            )
        _check(status, f"matmul {self._shape}")

    def _set(self, attribute: int, value: ctypes._SimpleCData) -> None:
        status = _library().cublasLtMatmulDescSetAttribute(
            self._desc, attribute, byref(value), c_size_t(ctypes.sizeof(value))
        )
        _check(status, "set attribute")

    def _layout(self, dtype: torch.dtype, rows: int, columns: int) -> c_void_p:
        layout = c_void_p()
        status = _library().cublasLtMatrixLayoutCreate(
            byref(layout), _TYPES[dtype], c_uint64(rows), c_uint64(columns), ctypes.c_int64(rows)
        )
        _check(status, "layout")
        self._made.append(("cublasLtMatrixLayoutDestroy", layout))
        return layout

    def _heuristics(self) -> list[_Heuristic]:
        library = _library()
        preference = c_void_p()
        _check(library.cublasLtMatmulPreferenceCreate(byref(preference)), "preference")
        self._made.append(("cublasLtMatmulPreferenceDestroy", preference))
        size = c_size_t(WORKSPACE_BYTES)
        status = library.cublasLtMatmulPreferenceSetAttribute(
            preference, _PREFERENCE_MAX_WORKSPACE_BYTES, byref(size), c_size_t(8)
        )
        _check(status, "preference")
        results = (_Heuristic * CANDIDATES)()
        found = c_int()
        with torch.cuda.device_of(self._workspace):
            status = library.cublasLtMatmulAlgoGetHeuristic(
                self._handle,
                self._desc,
                self._weight,
                self._a,
                self._out,
                self._out,
                preference,
                CANDIDATES,
                results,
                byref(found),
            )
        if status != _NOT_SUPPORTED:
            _check(status, f"heuristic {self._shape}")
        return [results[i] for i in range(found.value) if results[i].state == 0]
