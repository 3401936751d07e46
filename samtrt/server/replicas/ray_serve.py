"""The service on Ray Serve: `serve run deploy/ray-serve.yaml`.

Two deployments: ``Front`` is the application that clients speak to, ``Model`` has the model, a GPU
a replica. Ray starts replicas, as many as there is work for, looks after them and replaces them;
its router keeps a picture's requests with one replica, by a consistent hash of the picture's id.
"""

from collections.abc import AsyncIterator
from dataclasses import fields
from importlib.util import find_spec
from ipaddress import ip_address
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve import Application
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette

from samtrt.errors import InputError, SamtrtError
from samtrt.server.launch import (
    find_decoder,
    given_token,
    load_application,
    network_settings,
)
from samtrt.server.options import ServeOptions, from_text, options_of, to_text
from samtrt.server.replicas.exchange import (
    Answer,
    Forwarded,
    Headers,
    ReplicaLostError,
    answer_of,
    answered_headers,
)
from samtrt.server.replicas.front import create_front
from samtrt.server.settings import TOKEN_VARIABLE, limits

_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
# Ports and processes are Ray's.
_ARGUMENTS = [
    one.name
    for one in fields(ServeOptions)
    if one.name not in ("port", "workers", "gpus", "settings")
]


class Model:
    """A replica: the model with its application, which the front speaks to.

    Args:
        options: ``ServeOptions`` as text (``to_text``).
    """

    def __init__(self, options: str) -> None:
        known = from_text(options)
        self._app = load_application(known, known.settings, find_decoder(known))
        self._studio = self._app.state.studio
        self._studio.read_picture.start()

    async def computed_by(self) -> str:
        """What ids of pictures are made of."""
        found: str = self._studio.computed_by
        return found

    async def answer(self, request: Forwarded) -> AsyncIterator[tuple[int, Headers] | bytes]:
        """Status and headers, then the body's parts as they come."""
        async for message in answer_of(self._app, request):
            if message["type"] == "http.response.start":
                yield message["status"], answered_headers(message["headers"])
            elif message.get("body"):
                yield bytes(message["body"])

    async def check_health(self) -> None:
        """Ray Serve's health check: a replica whose encoder fails is replaced."""
        if not self._studio.works:
            raise RuntimeError("the image encoder fails on every picture")


class Front:
    """The application that clients speak to; Ray Serve runs it for what its proxies receive."""

    def __init__(self, model: "DeploymentHandle[Any]") -> None:
        pass  # the application asks for the handle itself


class RayReplicas:
    """The replicas of ``Model``, wherever they are; see ``Replicas``.

    Args:
        model: their handle.
        shared: whether they share a store.
    """

    def __init__(self, model: "DeploymentHandle[Any]", shared: bool) -> None:
        self.shared = shared
        self._model = model.options(stream=True)
        self._ask = model
        self._computed_by = ""

    async def computed_by(self) -> str:
        """See ``Replicas``."""
        if not self._computed_by:
            self._computed_by = await self._ask.computed_by.remote()
        return self._computed_by

    def candidates(self, key: str | None) -> list[str]:
        """See ``Replicas``: Ray's router knows the replicas, and names another once one is lost."""
        return [key or ""] * 3

    def all(self) -> list[str]:
        """See ``Replicas``: they have no names."""
        return []

    async def send(self, name: str, request: Forwarded) -> Answer:
        """See ``Replicas``."""
        model = self._model.options(session_id=name) if name else self._model
        parts = model.answer.remote(request)
        try:
            status, headers = await anext(parts)
        except (RayError, RayServeException) as error:
            raise _lost(error) from error
        return Answer(status, headers, _rest(parts))


async def _rest(parts: Any) -> AsyncIterator[bytes]:
    try:
        async for part in parts:
            yield part
    except (RayError, RayServeException) as error:
        raise _lost(error) from error


def _lost(error: Exception) -> Exception:
    """What a failure means: the replica or its node is gone, unless its own code has raised."""
    return error if isinstance(error, RayTaskError) else ReplicaLostError()


def application(arguments: dict[str, Any]) -> Application:
    """What a Ray Serve configuration names as ``import_path``.

    Args:
        arguments: ``params`` (a parameter folder, at the same path on every node) and any others of
            ``ServeOptions`` that are not about processes or ports; ``limits``: fields of
            ``Settings``. ``host`` is where Serve's proxies listen, as their ``http_options`` say.

    Raises:
        SamtrtError: Ray is too old.
        InputError: an argument that there is not, or no token where ``host`` is not the loopback.
    """
    options = _options(arguments)
    if find_spec(_ROUTER.rpartition(".")[0]) is None:
        raise SamtrtError(
            f"Ray {ray.__version__} has no router that keeps a picture's requests together; "
            "install Ray 2.60 or newer"
        )
    address = ip_address(options.host)
    if not address.is_loopback and given_token(options) is None:
        raise InputError(
            f"host is {options.host}, and there is no token; name a file with one as token_file, "
            f"or set {TOKEN_VARIABLE}"
        )
    settings = network_settings(options, address)
    shared = options.store is not None
    many = settings.max_requests

    def build() -> Starlette:
        handle: Any = serve.get_deployment_handle("Model")
        return create_front(RayReplicas(handle, shared), settings)

    front = serve.deployment(name="Front", max_ongoing_requests=4 * many)(
        serve.ingress(build)(Front)
    )
    model = serve.deployment(
        name="Model",
        max_ongoing_requests=many,
        health_check_period_s=5,
        request_router_config=RequestRouterConfig(
            request_router_class=_ROUTER,
            # Only with a store does another find the picture.
            request_router_kwargs={"num_fallback_replicas": 2 if shared else 0},
        ),
    )(Model)
    return front.bind(model.bind(to_text(options)))


def _options(arguments: dict[str, Any]) -> ServeOptions:
    given = arguments.get("limits", {})
    values = {name: value for name, value in arguments.items() if name != "limits"}
    known = {one.name for one in limits()}
    unknown = [*(values.keys() - set(_ARGUMENTS)), *(given.keys() - known)]
    if unknown or "params" not in values:
        wrong = f"there is no {unknown[0]}" if unknown else "params is missing"
        raise InputError(
            f"{wrong} among the arguments of the application; expected params and any of "
            f"{', '.join(_ARGUMENTS[1:])}, limits"
        )
    return options_of(values, given)
