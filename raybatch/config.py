"""What every piece of the pipeline file is made of: a frozen pydantic model that forbids unknown keys.

Each source, stage and sink defines its own `Config` beside its code. Validation does no I/O: it sees the text
of the file, the folder that the file is in and the pipeline's name (`base_dir` and `pipeline` of the validation
context), nothing else.

`PathOrUrl`, `ModelName` and `Secret` carry a `format` in their JSON Schema: by it `raybatch.spec` knows,
before it validates, which strings to read relative to the file that says them, and which must not be written
down.
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationInfo

_CREDENTIALS = re.compile(
    r"^[A-Za-z][A-Za-z0-9+.-]*://[^/@]*:[^/@]*@|[?&](sig|X-Amz-Signature|X-Goog-Signature)=", re.IGNORECASE
)
_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")

PATH_FORMAT = "path-or-url"
MODEL_FORMAT = "model-name"
SECRET_FORMAT = "password"  # what pydantic writes for a SecretStr


class Config(BaseModel):
    """Base of all configs: immutable, unknown keys are errors, fields are documented by their docstrings."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        hide_input_in_errors=True,
    )


def is_url(path: str) -> bool:
    """Whether `path` names a filesystem by a scheme, such as s3://bucket/key."""
    return bool(_URL.match(path))


def resolve_path(path: str, base_dir: str) -> str:
    """`path`, absolute, seen from `base_dir`; a URL and the empty string as they are. Idempotent."""
    if not path or is_url(path):
        return path
    # normpath drops a trailing slash, which says "a folder"; keep it
    resolved = os.path.normpath(os.path.join(base_dir, os.path.expanduser(path)))
    return resolved + "/" if path.endswith("/") and not resolved.endswith("/") else resolved


def resolve_model(model: str, base_dir: str) -> str:
    """As `resolve_path`, but only of what looks like a path: `org/name` is a hub name."""
    return resolve_path(model, base_dir) if model.startswith((".", "/", "~")) else model


def _from_file(path: str, info: ValidationInfo) -> str:
    if _CREDENTIALS.search(path):
        raise ValueError(
            "a URL holds no credentials: they come from the environment, or from secret fields (see `storage`)"
        )
    context: dict[str, Any] = info.context or {}
    return resolve_path(path, context["base_dir"]) if "base_dir" in context else path


def _model_from_file(model: str, info: ValidationInfo) -> str:
    context: dict[str, Any] = info.context or {}
    return resolve_model(model, context["base_dir"]) if "base_dir" in context else model


def _never_literal(value: object) -> SecretStr:
    if isinstance(value, SecretStr):
        return value
    raise ValueError("a secret is never written down: use ${env:NAME}, or ${file:/path} for a mounted file")


PathOrUrl = Annotated[str, AfterValidator(_from_file), Field(json_schema_extra={"format": PATH_FORMAT})]
"""A URL, or a local path; a relative one is relative to the file that says it."""

ModelName = Annotated[
    str, AfterValidator(_model_from_file), Field(json_schema_extra={"format": MODEL_FORMAT})
]
"""A hub name (`Qwen/Qwen3-8B`), or a local folder, which starts with `.`, `/` or `~`."""

Secret = Annotated[
    SecretStr,
    BeforeValidator(_never_literal),
    Field(json_schema_extra={"pattern": r"^\$\{(env|file):[^}]+\}$"}),
]
"""A password or token. In a file it is `${env:NAME}` or `${file:/path}`, in Python a `SecretStr`; never
plain text."""
