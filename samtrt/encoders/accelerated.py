"""Any module that is SAM's image encoder, computing by the runtime of this package.

``accelerate`` gives the module a subclass of its own class whose ``forward`` asks the runtime
wherever that computes the same, and the module's own code elsewhere. Parameters, names, methods and
everything around it stay what they are, and ``restore`` gives the class back.
"""

import functools
import inspect
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn

from samtrt.checkpoints.config import EncoderConfig
from samtrt.encoders.choice import why_not_cuda
from samtrt.encoders.load import encoder_from_tensors
from samtrt.encoders.protocol import ImageEncoder
from samtrt.encoders.recognized import RecognizedEncoder, find_encoders, recognize
from samtrt.encoders.watch import Checksum, Watch
from samtrt.errors import EngineError, InputError
from samtrt.modeling.heads import split_taps
from samtrt.modeling.image_encoder import ImageEncoderViT
from samtrt.modeling.layers import is_hooked
from samtrt.torch_state import as_written

logger = logging.getLogger(__name__)

_Model = TypeVar("_Model", bound=nn.Module)
_PRECISIONS = ("auto", "fp32", "fp16", "bf16")
# How far the first picture may be from the module's own answer, in relative L2, by the precision of
# either. What is no SAM encoder is off by a multiple of one; full-size fp16 encoders are off by
# some 0.002.
_LARGEST_ERROR = {"fp32": 0.01, "fp16": 0.1, "bf16": 0.1}
_NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16"}
# What Hugging Face's processors say of a picture, and their models hand to the encoder, unread.
_PASSED_ON = ("original_sizes", "reshaped_input_sizes")
# Modules whose code is the definition that the runtimes are proved against.
_OURS = ("samtrt.modeling.", "torch.nn.")


def accelerate(model: _Model, precision: str = "auto") -> _Model:
    """Lets the image encoder of any SAM compute by the runtime of this package, in place.

    Found are Meta's ``Sam`` or ``ImageEncoderViT``, copies and forks of them, SAM-HQ's, with its
    early features, Hugging Face's ``SamModel``, ``SamHQModel`` or ``SamVisionEncoder``, and the
    network of Cellpose-SAM as a whole: by names and shapes, whatever the class. It computes on the
    device that its parameters are on: CUDA GPUs of compute capability 8.0 and newer, and CPUs.
    Everything else of the model stays its own code, and the encoder returns what it always did.

    The first picture is computed by the module's own code too, and the two are compared. After
    that the own code computes in training mode, where gradients are wanted (gradients on, and a
    parameter or the input requires them: call within ``torch.no_grad()``), while torch traces or
    exports, and where a layer was replaced or hooked; the log says so once for each reason.

    ``to``, ``half``, ``load_state_dict``, ``deepcopy``, ``pickle`` and ``del`` do what they say.
    Parameters that were changed are seen at the next call, writes through ``.data`` too: each call
    reads all of them once, which takes a few hundredths of an encoder's time, and waits for that on
    a GPU.

    Args:
        model: the model or the encoder itself; changed in place.
        precision: ``"auto"`` is fp16 on a GPU and fp32 on the CPU; ``"fp16"`` or ``"bf16"`` on a
            GPU, ``"fp32"`` or ``"bf16"`` on the CPU.

    Returns:
        The model. One of ``load_sam``, whose encoder is a runtime already, is left as it is.

    Raises:
        InputError: it is no module; something in the encoder is not as in SAM's, which is named;
            or, at the first picture, its own code computes something else.
        EngineError: the GPU that it is on cannot be used.
    """
    if precision not in _PRECISIONS:
        raise InputError(f"precision is {precision!r}, expected {', '.join(_PRECISIONS)}")
    _require_module(model, "accelerate")
    if any(getattr(module, "is_runtime", False) for module in model.modules()):
        return model
    found = find_encoders(model)
    for path, encoder in found:
        recognize(encoder, path)
        device = next(encoder.parameters()).device
        if device.type == "cuda" and (lacking := why_not_cuda(device)):
            raise EngineError(f"the encoder on {device} cannot be accelerated: {lacking}")
    for _, encoder in found:
        if not isinstance(encoder, _Accelerated):
            kind: Any = type(encoder)
            encoder.__class__ = _class_over(kind)
        encoder.__dict__["_samtrt"] = Acceleration(precision)
    return model


def restore(model: _Model) -> _Model:
    """Undoes ``accelerate``: the encoder computes by its own code again.

    Returns:
        The model; one that was not accelerated is left as it is.

    Raises:
        InputError: it is no module.
    """
    _require_module(model, "restore")
    for module in model.modules():
        if isinstance(module, _Accelerated):
            del module.__dict__["_samtrt"]
            module.__class__ = type(module).__mro__[2]
    return model


def acceleration_of(module: nn.Module) -> "Acceleration | None":
    """What ``accelerate`` has given that module itself."""
    return module.__dict__.get("_samtrt") if isinstance(module, _Accelerated) else None


def is_ours(module: nn.Module) -> bool:
    """Whether it is the definition that the runtimes are proved against, and nothing beside it."""
    return isinstance(module, ImageEncoderViT) and all(
        type(part).__module__.startswith(_OURS) and (part is module or not is_hooked(part))
        for part in module.modules()
    )


def _require_module(model: Any, name: str) -> None:
    """Programs' objects around a model have it as ``model`` or ``net``, which the line names."""
    if isinstance(model, nn.Module):
        return
    modules = [k for k, v in getattr(model, "__dict__", {}).items() if isinstance(v, nn.Module)]
    found = f"; its modules are {', '.join(f'.{k}' for k in modules)}" if modules else ""
    raise InputError(f"samtrt.{name} takes a torch module, and got a {type(model).__name__}{found}")


class _Accelerated(nn.Module):
    """What the subclasses have in common."""

    _samtrt: "Acceleration"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """What ``to``, ``cpu``, ``half`` and their like come down to."""
        self._samtrt.moving(self, lambda: super(_Accelerated, self)._apply(fn, recurse))
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The subclass has no name of its own to be found by.
        return _new, (type(self).__mro__[2],), self.__getstate__()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()


def _new(kind: Any) -> Any:
    subclass = _class_over(kind)
    return subclass.__new__(subclass)


@functools.cache
def _class_over(kind: Any) -> Any:
    own_forward: Callable[..., Any] = kind.forward

    @functools.wraps(own_forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._samtrt.forward(self, functools.partial(own_forward, self), args, kwargs)

    names = {"forward": forward, "__module__": kind.__module__, "__doc__": kind.__doc__}
    subclass = type(kind.__name__, (_Accelerated, kind), names)
    subclass.__qualname__ = kind.__qualname__
    return subclass


class Acceleration:
    """The runtime of one module: made at its first use, and again when the module changes.

    It belongs to the module and does not hold it. Any number of threads may call.

    Args:
        precision: see ``accelerate``.

    Attributes:
        changes: how often other parameters or layers were seen; moves are none.
    """

    def __init__(self, precision: str) -> None:
        self.precision = precision
        self.changes = 0
        self._said: set[str] = set()
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.RLock()
        self._runtime: ImageEncoder | None = None
        self._recognized: RecognizedEncoder | None = None
        self._watch: Watch | None = None
        self._checksum: Checksum | None = None
        self._form: _Form | None = None
        self._taps: tuple[int, ...] = ()  # blocks that the own code returns the output of
        self._refused = ""

    def __getstate__(self) -> dict[str, Any]:
        """Without the runtime, which a copy or another process makes for itself."""
        return {"precision": self.precision, "changes": 0, "_said": set(self._said)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def forward(
        self, module: nn.Module, own: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """``module``'s answer, by the runtime or by its own code.

        Raises:
            InputError: the own code was found to compute something else.
        """
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            return own(*args, **kwargs)
        x = _picture(module, own, args, kwargs)
        if x is None:
            return own(*args, **kwargs)
        reason, runtime, form = _wants_own_code(module, x), None, None
        if not reason:
            with self._lock:
                reason = self._prepare(module)
                if not reason and self._fits(x, module):
                    if self._form is None:
                        self._form = self._compared(module, own, x)
                    runtime, form = self._made(module), self._form
        if reason:
            self._say(module, reason)
        if runtime is None or form is None:
            return own(*args, **kwargs)
        dtype = next(module.parameters()).dtype
        return form(runtime(x.detach().float()).to(dtype))

    def runtime_of(self, module: nn.Module) -> ImageEncoder | None:
        """What computes now, made if it is not yet; None where the own code does."""
        if module.training:
            return None
        with self._lock:
            return None if self._prepare(module) else self._made(module)

    def observe(self, module: nn.Module, thoroughly: bool = True) -> int:
        """Looks whether the module has changed since it was last looked at; see ``changes``.

        Args:
            thoroughly: reads all parameters, so that writes through ``.data`` are seen too.
        """
        with self._lock:
            if self._watch is None or self._checksum is None:
                self._look(module)
            elif self._watch.changed_layer() is not None:
                self._form = None  # other layers, other code
                self._look(module)
            elif self._watch.has_new_weights() or (
                thoroughly and not self._checksum.is_unchanged()
            ):
                self._look(module)
            return self.changes

    def _look(self, module: nn.Module) -> None:
        self._runtime = self._recognized = None
        self._watch = Watch(module)
        self._checksum = Checksum(module.parameters())
        self.changes += 1

    def moving(self, module: nn.Module, move: Callable[[], object]) -> None:
        """Lets the module be moved or cast, and gives the memory of a runtime back that was there.

        What was moved as it is is no change.
        """
        with self._lock:
            if self._watch is None:
                move()
                return
            dtype, changes = next(module.parameters()).dtype, self.observe(module)
            move()
            if self._watch.has_new_weights():
                self._look(module)
                if next(module.parameters()).dtype == dtype:
                    self.changes = changes

    def _prepare(self, module: nn.Module) -> str:
        """Recognizes the module as it is; why it cannot be computed."""
        if self._refused:
            raise InputError(self._refused)
        self.observe(module)
        if self._recognized is not None:
            return ""
        try:
            found = recognize(module)
        except InputError as error:
            return str(error)
        device = next(module.parameters()).device
        if device.type not in ("cpu", "cuda"):
            return f"it is on {device}"
        if device.type == "cuda" and (lacking := why_not_cuda(device)):
            return lacking
        self._recognized = found
        if is_ours(module):
            self._form = _as_it_is
        return ""

    def _made(self, module: nn.Module) -> ImageEncoder:
        """The runtime of what was recognized."""
        if self._runtime is None:
            assert self._recognized is not None
            config, tensors = self._recognized.config, self._recognized.tensors(module)
            config = replace(config, taps=self._taps or config.taps)
            device, precision = tensors["pos_embed"].device, self.precision
            if precision == "auto":
                # Programs written for fp32 get answers that agree; a CPU's bf16 is asked for.
                precision = "fp32" if device.type == "cpu" else "fp16"
            self._runtime = encoder_from_tensors(config, tensors, "auto", device, precision)
        return self._runtime

    def _fits(self, x: Tensor, module: nn.Module) -> bool:
        """Whether it is a batch of pictures; the own code says what is wrong with others."""
        assert self._recognized is not None
        side, parameter = self._recognized.config.img_size, next(module.parameters())
        is_batch = x.ndim == 4 and len(x) > 0 and x.shape[1:] == (3, side, side)
        is_mixed = torch.is_autocast_enabled(x.device.type) and x.is_floating_point()
        return (
            is_batch and x.device == parameter.device and (x.dtype == parameter.dtype or is_mixed)
        )

    def _compared(self, module: nn.Module, own: Callable[..., Any], x: Tensor) -> "_Form":
        """The form of the module's answers, if its first one is the runtime's."""
        assert self._recognized is not None
        config, dtype = self._recognized.config, next(module.parameters()).dtype
        picture, side = x[:1].detach(), (config.grid_size, config.grid_size)
        with as_written():
            answer = own(picture.to(dtype))
            parts = _parts(answer)
            if parts is None and config.readout_chans:
                parts = _with_style(answer, lambda: own(picture.to(dtype)))
            name = type(module).__name__
            early = parts.early if parts else []
            if parts is None or not (
                len(early) in (0, len(config.global_attn_indexes))
                and all(part.shape == (1, *side, config.embed_dim) for part in early)
            ):
                self._refuse(
                    f"{name}.forward returns {_described(answer)} beside SAM's embedding, which "
                    "the runtime does not give"
                )
            taps = config.global_attn_indexes if early else ()
            if taps != self._taps:
                self._taps, self._runtime = taps, None
            config = replace(config, taps=taps)
            runtime = self._made(module)
            found = _split(runtime(picture.float()), config)
        expected = [parts.embedding, *parts.early]
        error = max(_error(*pair) for pair in zip(found, expected, strict=True))
        precisions = runtime.computed_by.split()[1], _NAMES.get(dtype, "fp32")
        if not error <= max(_LARGEST_ERROR[precision] for precision in precisions):
            self._refuse(
                f"{name}.forward computes something else than SAM's image encoder of these sizes "
                f"(relative difference {error:.2g} on the first picture)"
            )
        kind, together = type(parts.early), parts.together

        def form(output: Tensor) -> Any:
            embedding, *early = _split(output, config)
            return together(embedding, kind(early))

        return form

    def _refuse(self, why: str) -> NoReturn:
        self._refused = f"{why}; samtrt.restore the model"
        raise InputError(self._refused)

    def _say(self, module: nn.Module, reason: str) -> None:
        if reason not in self._said:
            self._said.add(reason)
            logger.warning("%s computes by its own code: %s", type(module).__name__, reason)


def _picture(
    module: nn.Module, own: Callable[..., Any], args: Any, kwargs: dict[str, Any]
) -> Tensor | None:
    """The call's picture; None where something else is asked for too."""
    if len(args) == 1 and not kwargs:
        return args[0] if isinstance(args[0], Tensor) else None
    signature = inspect.signature(own)
    try:
        asked = dict(signature.bind(*args, **kwargs).arguments)
    except TypeError:  # which the own code says
        return None
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            asked |= asked.pop(name, {})
    x = asked.pop(next(iter(signature.parameters)), None)
    # As Hugging Face's models have it: what is not asked for is None or False, and the config says
    # whether the answer is a tuple.
    as_ever = getattr(getattr(module, "config", None), "return_dict", True)
    if asked.pop("return_dict", None) not in (None, as_ever):
        return None
    for name in _PASSED_ON:
        asked.pop(name, None)
    is_alone = all(other is None or other is False for other in asked.values())
    return x if isinstance(x, Tensor) and is_alone else None


def _wants_own_code(module: nn.Module, x: Tensor) -> str:
    if module.training:
        return "it is in training mode"
    if torch.is_grad_enabled() and (
        x.requires_grad or any(parameter.requires_grad for parameter in module.parameters())
    ):
        return "gradients are on and required; without, call it within torch.no_grad()"
    config = getattr(module, "config", None)
    for name in ("output_hidden_states", "output_attentions"):
        if getattr(config, name, False):
            return f"its config asks for {name}"
    return ""


_Form = Callable[[Tensor], Any]


def _as_it_is(output: Tensor) -> Tensor:
    return output


@dataclass(frozen=True)
class _Parts:
    """A module's answer, taken apart.

    Attributes:
        embedding: [B, C, h, w].
        early: the output of the global blocks, [B, h, w, C] each, in a list or tuple.
        together: makes such an answer of an embedding and early features.
    """

    embedding: Tensor
    early: Any
    together: Callable[[Tensor, Any], Any]


def _parts(answer: Any) -> _Parts | None:
    """None with anything beside embedding and early features."""
    kind = type(answer)
    if isinstance(answer, Tensor):
        return _Parts(answer, [], lambda embedding, _: embedding)
    if isinstance(answer, tuple) and len(answer) == 1 and isinstance(answer[0], Tensor):
        return _Parts(answer[0], [], lambda embedding, _: (embedding,))
    if isinstance(answer, tuple) and len(answer) == 2 and _are_early(*answer):
        return _Parts(*answer, lambda *parts: parts)
    values = {k: v for k, v in getattr(answer, "__dict__", {}).items() if v is not None}
    names = list(values)
    if names == ["last_hidden_state"]:
        (embedding,) = values.values()
        return _Parts(embedding, [], lambda found, _: kind(last_hidden_state=found))
    if names == ["last_hidden_state", "intermediate_embeddings"] and _are_early(*values.values()):
        embedding, early = values.values()
        return _Parts(embedding, early, lambda *parts: kind(**dict(zip(names, parts, strict=True))))
    return None


def _are_early(embedding: Any, features: Any) -> bool:
    return (
        isinstance(embedding, Tensor)
        and isinstance(features, list | tuple)
        and len(features) > 0
        and all(isinstance(part, Tensor) and part.ndim == 4 for part in features)
    )


def _with_style(answer: Any, again: Callable[[], Any]) -> _Parts | None:
    """Cellpose's answer: flows, and a vector that has its place and says nothing.

    It is zero, or in older versions random, which a second answer shows.
    """
    if not (isinstance(answer, tuple) and len(answer) == 2):
        return None
    flows, style = answer
    if not (isinstance(flows, Tensor) and isinstance(style, Tensor) and style.ndim == 2):
        return None
    if not style.any():
        fill: Callable[..., Tensor] = torch.zeros
    elif not torch.equal(style, again()[1]):
        fill = torch.randn
    else:
        return None
    like = {"dtype": style.dtype, "device": style.device}
    return _Parts(flows, [], lambda found, _: (found, fill(len(found), style.shape[1], **like)))


def _split(output: Tensor, config: EncoderConfig) -> list[Tensor]:
    """The embedding of the runtime's output, and the early features [B, h, w, C]."""
    if not config.taps:
        return [output]
    embedding, *early = split_taps(output, config)
    return [embedding.contiguous(), *(tap.permute(0, 2, 3, 1).contiguous() for tap in early)]


def _error(found: Tensor, expected: Tensor) -> float:
    """In relative L2."""
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected.float()).norm() / expected.float().norm())


def _described(answer: Any) -> str:
    if isinstance(answer, tuple | list):
        return f"{len(answer)} values ({', '.join(type(value).__name__ for value in answer)})"
    return f"a {type(answer).__name__}"
