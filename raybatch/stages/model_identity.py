"""Which model a folder holds, so that a run notices when it is another one on resume."""

from __future__ import annotations

import hashlib
import os

_WHOLE = 1 << 20  # files up to this size are read whole: config, tokenizer
_SAMPLE = 1 << 16  # of larger ones, the weights, this much at three places: training changes them all
# What models are made of; a README or a log beside them changes no output.
_SUFFIXES = (
    ".json",
    ".jinja",
    ".txt",
    ".model",
    ".safetensors",
    ".bin",
    ".pt",
    ".gguf",
    ".onnx",
    ".xml",
    ".py",
)


def model_identity(model: str) -> str | None:
    """A digest of the files of the local folder `model`; None for a hub name, or where there is no such
    folder.

    Weights are sampled, not read: enough to tell one training from another, not against someone who means it.
    """
    if not model.startswith((".", "/", "~")) or not os.path.isdir(model):
        return None
    digest = hashlib.sha256()
    for name in sorted(os.listdir(model)):
        path = os.path.join(model, name)
        if not name.endswith(_SUFFIXES) or not os.path.isfile(path):
            continue
        size = os.path.getsize(path)
        digest.update(f"{name}\0{size}\0".encode())
        with open(path, "rb") as file:
            if size <= _WHOLE:
                digest.update(file.read())
                continue
            for start in (0, size // 2, size - _SAMPLE):
                file.seek(start)
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()[:16]
