"""The plugins' library: compiled by one command, loaded where it belongs, refused where not."""

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from oracle import tiny_config

from samtrt.building.build import BuildOptions, build_encoder
from samtrt.checkpoints.parameters import random_parameters
from samtrt.encoders.tensorrt import plugin_library
from samtrt.encoders.tensorrt.plugin_library import (
    VARIABLE,
    build_library,
    load_library,
    sources_sha256,
)
from samtrt.errors import EngineError

LIBRARY = """
const char* samtrt_plugins_sha256(void) {{ return "{sha256}"; }}
int samtrt_plugins_tensorrt_major(void) {{ return {major}; }}
"""


def library(folder: Path, sha256: str, major: int = 8) -> Path:
    """One that says what it is, and has no plugin."""
    path = folder / f"lib{sha256[:8]}-{major}.so"
    source = LIBRARY.format(sha256=sha256, major=major)
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(path)]
    subprocess.run(command, input=source, text=True, check=True)
    return path


class Registry:
    """Knows the plugin once a library was loaded, if that has it.

    Args:
        listed: what has the plugins of the version's own kind: ``all_creators`` since TensorRT 10,
            where ``plugin_creator_list`` has the older kind only.
    """

    def __init__(self, has_plugin: bool = True, listed: str = "plugin_creator_list") -> None:
        self.loaded: list[str] = []
        self.has_plugin, self.listed = has_plugin, listed

    def __getattr__(self, name: str) -> Any:
        if name == self.listed:
            return self._creators()
        if name == "plugin_creator_list":
            return []
        raise AttributeError(name)

    def load_library(self, path: str) -> None:
        self.loaded.append(path)

    def _creators(self) -> list[Any]:
        """TensorRT writes an error to its log where a plugin is asked for that is not in it."""
        there = [("Scatter", "1", ""), ("SamtrtKernel", "2", ""), ("SamtrtKernel", "1", "theirs")]
        there += [("SamtrtKernel", "1", "")] if self.loaded and self.has_plugin else []
        return [
            SimpleNamespace(name=name, plugin_version=version, plugin_namespace=namespace)
            for name, version, namespace in there
        ]


def tensorrt(registry: Registry, version: str = "8.6.0", name: str = "tensorrt") -> Any:
    definition = SimpleNamespace(add_plugin_v2=None)
    if not version.startswith("8"):
        definition.add_plugin_v3 = None
    return SimpleNamespace(
        __name__=name,
        __version__=version,
        get_plugin_registry=lambda: registry,
        INetworkDefinition=definition,
    )


@pytest.mark.parametrize(
    ("version", "listed"),
    [("8.6.0", "plugin_creator_list"), ("10.0.1", "all_creators"), ("11.4.0", "all_creators")],
)
@pytest.mark.parametrize("builds", [True, False], ids=["builder", "runtime-only"])
def test_it_is_loaded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, listed: str, builds: bool
) -> None:
    registry, ours = Registry(listed=listed), sources_sha256()
    path = library(tmp_path, ours, int(version.split(".")[0]))
    monkeypatch.setenv(VARIABLE, str(path))
    trt = tensorrt(registry, version)
    if not builds:
        del trt.INetworkDefinition
    assert load_library(trt) == load_library(trt, ours) == ours
    assert registry.loaded == [str(path)]


def test_what_is_no_library_of_ours_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, match: str, trt: Any = None, **needs: str) -> None:
        monkeypatch.setenv(VARIABLE, str(path))
        with pytest.raises(EngineError, match=match) as error:
            load_library(trt or tensorrt(Registry()), **needs)
        assert "\n" not in str(error.value)

    ours = sources_sha256()
    refused(tmp_path / "none.so", "does not exist; `samtrt build-plugins` compiles it")
    text = tmp_path / "text.so"
    text.write_text("no library")
    refused(text, "cannot be loaded")
    refused(library(tmp_path, ours, 10), "compiled for TensorRT 10, and tensorrt 8.6.0 is inst")
    refused(library(tmp_path, ours), "does not load the plugin library", tensorrt(Registry(False)))
    rtx = tensorrt(Registry(), "1.7.1.116", "tensorrt_rtx")
    refused(library(tmp_path, ours, 1), "tensorrt_rtx .* takes no plugins from Python", trt=rtx)
    refused(library(tmp_path, "0" * 64), "other sources than this version's")
    refused(library(tmp_path, "1" * 64), "than those that the engine was built with", sha256=ours)


def test_what_is_missing_to_compile_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = {"NvInferRuntime.h": tmp_path / "a", "cuda.h": tmp_path / "b"}
    for name, folder in headers.items():
        folder.mkdir()
        (folder / name).touch()
    output = tmp_path / "library.so"
    monkeypatch.setattr(plugin_library, "_TENSORRT_FOLDERS", ())

    def refused(match: str, *arguments: Any, **options: Any) -> None:
        with pytest.raises(EngineError, match=match) as error:
            build_library(output, *arguments, **options)
        assert "\n" not in str(error.value)
        assert not output.exists()

    refused(r"NvInferRuntime\.h is in none of the usual folders; .* --tensorrt-include")
    refused(r"NvInferRuntime\.h is not in .*b; name", headers["cuda.h"])
    refused(r"cuda\.h is not in .*a; .* --cuda-include", *[headers["NvInferRuntime.h"]] * 2)
    refused("the compiler c3p0 is not installed", *headers.values(), compiler="c3p0")
    refused(
        "false could not compile the plugins: exit status 1", *headers.values(), compiler="false"
    )


def test_a_changed_source_is_another_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for source in plugin_library.SOURCES.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    before = sources_sha256()
    monkeypatch.setattr(plugin_library, "SOURCES", tmp_path)
    assert sources_sha256() == before
    (tmp_path / "layer.h").write_text((tmp_path / "layer.h").read_text() + "\n")
    assert sources_sha256() != before


def test_plugins_are_for_tensorrt_and_one_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(match: str, **options: Any) -> None:
        with pytest.raises(EngineError, match=match):
            parameters = random_parameters(tiny_config())
            build_encoder(parameters, tmp_path, options=BuildOptions(plugins="all", **options))

    refused("--plugins are for --backend tensorrt; the cpu backend", backend="cpu")
    monkeypatch.setattr("samtrt.building.build.compute_capability", lambda: None)
    refused(r"compute capability 9\.0, and torch finds no GPU here", backend="tensorrt")
    monkeypatch.setattr("samtrt.building.build.compute_capability", lambda: "8.9")
    refused(r"compute capability 9\.0, and this GPU has 8\.9")
