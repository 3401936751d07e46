"""The two graphs in ONNX Runtime: what is checked before it is sent."""

import gzip
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from samtrt.decoders.browser.contract import FILES, METADATA, OUTPUTS, PREPARED
from samtrt.decoders.sealed import is_sealed
from samtrt.errors import EngineError
from samtrt.files import read_whole


class BrowserDecoder:
    """The two graphs in ONNX Runtime, as the page runs them: what is checked before it is sent.

    Attributes:
        parameters_sha256: of the parameters they were made of.
        format: ``FORMAT`` of the version that made them.

    Raises:
        EngineError: a file is missing, damaged, or not of the other one.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        import onnxruntime as ort

        self.folder = Path(folder)
        options = ort.SessionOptions()
        options.log_severity_level = 4  # none: the exception says it
        sessions = []
        for name in FILES:
            try:
                content = bytes(read_whole(self.folder / name))
                if not is_sealed(content):
                    raise ValueError("it does not end in a digest")
                if gzip.decompress(read_whole(self.folder / f"{name}.gz")) != content:
                    raise ValueError("its compressed form is another")
                providers = ["CPUExecutionProvider"]
                sessions.append(ort.InferenceSession(content, options, providers))
            except Exception as error:  # ONNX Runtime's share no base class of their own
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                raise EngineError(
                    f"{self.folder / name} cannot be used as the page's mask decoder ({reason}); "
                    f"remove {self.folder} and start the server again, which makes it anew"
                ) from error
        self._prepare, self._decode = sessions
        metadata = [session.get_modelmeta().custom_metadata_map for session in sessions]
        made_of = [[of.get(key, "") for key in METADATA] for of in metadata]
        if made_of[0] != made_of[1]:
            raise EngineError(
                f"the files in {self.folder} are not of one mask decoder; remove the folder and "
                "start the server again, which makes it anew"
            )
        self.parameters_sha256, self.format = made_of[0]

    def prepare(self, embedding: np.ndarray, mask: np.ndarray | None = None) -> list[np.ndarray]:
        """[1, 256, h, w], and [1, 1, 4h, 4w] logits or None → ``PREPARED``."""
        side = 4 * embedding.shape[-1]
        zeros = np.zeros((1, 1, side, side), np.float32)
        feed = {
            "image_embeddings": embedding.astype(np.float16),
            "mask_input": zeros if mask is None else mask,
            "has_mask_input": np.array([mask is not None], np.float32),
        }
        return self._prepare.run(list(PREPARED), feed)

    def decode(
        self,
        prepared: Sequence[np.ndarray],
        coords: np.ndarray,
        labels: np.ndarray,
        shown: tuple[int, int] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Coords [1, N, 2] and labels [1, N] → logits [1, 4, 4R, 4Q] and predicted IoUs [1, 4].

        Args:
            shown: (R, Q) rows and columns of image tokens to upscale; None for all.
        """
        side = int(np.sqrt(len(prepared[0])))
        rows, columns = shown or (side, side)
        feed = {
            **dict(zip(PREPARED, prepared, strict=True)),
            "point_coords": coords,
            "point_labels": labels,
            "rows": np.arange(rows),
            "columns": np.arange(columns),
        }
        logits, scores = self._decode.run(list(OUTPUTS), feed)
        return logits, scores
