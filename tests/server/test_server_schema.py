"""The API against its own OpenAPI document, with inputs that nobody thought of."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance
from server_support import encoded, picture, running, tiny_model

from samtrt.sam import load_sam
from samtrt.server.app import create_app

KINDS = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}
for media_type, kind in {**KINDS, "application/octet-stream": "PNG"}.items():
    schemathesis.openapi.media_type(
        media_type, st.sampled_from([encoded(picture(seed, 40, 60), kind) for seed in range(3)])
    )


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(create_app(load_sam(tiny_model() / "engine", tiny_model()))) as url:
        yield url


@pytest.fixture(scope="module")
def document(url: str) -> Any:
    return schemathesis.openapi.from_url(f"{url}/openapi.json")


@pytest.fixture(scope="module")
def embedding_id(url: str) -> str:
    headers = {"Content-Type": "image/png"}
    response = httpx.post(f"{url}/embed", content=encoded(picture(0)), headers=headers)
    return response.json()["id"]


OPERATIONS = [
    ("POST", "/v1/embed"),
    ("GET", "/v1/embed/{embedding_id}"),
    ("POST", "/v1/masks"),
    ("POST", "/v1/everything"),
    ("GET", "/health"),
    ("GET", "/ready"),
    ("GET", "/metrics"),
]
# A picture's bytes, or no input at all, cannot be of a wrong type.
CASES = [(GenerationMode.POSITIVE, *operation) for operation in OPERATIONS] + [
    (GenerationMode.NEGATIVE, *operation) for operation in OPERATIONS[1:4]
]
few = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def test_every_documented_operation_is_tested(document: Any) -> None:
    found = {(item.ok().method.upper(), item.ok().path) for item in document.get_all_operations()}
    assert found == set(OPERATIONS)


@pytest.mark.parametrize(("mode", "method", "path"), CASES)
def test_api_keeps_its_contract(
    document: Any, embedding_id: str, mode: GenerationMode, method: str, path: str
) -> None:
    operation = document[path][method]

    @few
    @given(case=operation.as_strategy(generation_mode=mode), known=st.booleans())
    def check(case: schemathesis.Case, known: bool) -> None:
        if known and mode is GenerationMode.POSITIVE:
            use_known_picture(case, embedding_id)
        # A random id ends in 404 and a valid prompt may lie outside the picture.
        case.call_and_validate(excluded_checks=[positive_data_acceptance], timeout=60)

    check()


def use_known_picture(case: schemathesis.Case, embedding_id: str) -> None:
    if case.path_parameters:
        case.path_parameters["embedding_id"] = embedding_id
    if isinstance(case.body, dict):
        case.body["id"] = embedding_id
        if case.path == "/v1/everything":  # 64 points a side would take minutes here
            case.body["points_per_side"] = min(case.body.get("points_per_side", 2), 2)
