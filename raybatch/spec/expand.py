"""`${env:NAME}` and `${file:/path}`: text that the pipeline file names and does not hold.

- `${env:NAME}` anywhere in any text; `${env:NAME:-default}` where NAME may be unset. The result is text;
  fields of other types read it as such ("8" for a whole number).
- `${file:/path}`, a mounted secret, only in a secret field, where a reference must be the whole value.
- `$${env:NAME}` is the text `${env:NAME}`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from raybatch.config import MODEL_FORMAT, PATH_FORMAT, SECRET_FORMAT, resolve_model, resolve_path
from raybatch.spec.fields import Fields
from raybatch.spec.tree import Findings, KeyPath, Node, dotted

_REFERENCE = re.compile(r"(?P<escape>\$?)\$\{(?P<kind>env|file):(?P<what>[^}]*)\}")
_VARIABLE = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>.*))?", re.DOTALL)


class Expander:
    """Expands the references of one pipeline. What cannot be expanded is a finding, and its path is kept in
    `failed`, so that nobody complains about the value as well."""

    def __init__(self, env: Mapping[str, str], findings: Findings) -> None:
        self._env = env
        self._findings = findings
        self.failed: set[KeyPath] = set()

    def plain(self, node: Node, *, path: KeyPath, fields: Fields, root: KeyPath = ()) -> Any:
        """The plain value of `node`, which is at `path`; `fields` describes what is below `root`.

        Paths become absolute, seen from where they were said; text in a secret field becomes a `SecretStr`
        if it is a reference.
        """
        if isinstance(node.value, dict):
            return {
                k: self.plain(child, path=(*path, k), fields=fields, root=root)
                for k, child in node.value.items()
            }
        if isinstance(node.value, list):
            return [
                self.plain(child, path=(*path, i), fields=fields, root=root)
                for i, child in enumerate(node.value)
            ]
        if not isinstance(node.value, str):
            return node.value
        formats = fields.formats(path[len(root) :])
        if SECRET_FORMAT in formats:
            return self._secret(node, node.value, path)
        text = self.text(node, path=path)
        if PATH_FORMAT in formats:
            return resolve_path(text, node.origin.base_dir)
        return resolve_model(text, node.origin.base_dir) if MODEL_FORMAT in formats else text

    def text(self, node: Node, *, path: KeyPath) -> str:
        """The text of `node`, expanded; it is not a secret."""

        def expanded(found: re.Match[str]) -> str:
            if found["escape"]:
                return found[0][1:]
            if found["kind"] == "file":
                return self._fail(node, path, f"{found[0]} is for secret fields only; this is none")
            return self._variable(node, path, found["what"])

        return _REFERENCE.sub(expanded, str(node.value))

    def _secret(self, node: Node, text: str, path: KeyPath) -> object:
        found = _REFERENCE.fullmatch(text)
        if not found or found["escape"]:
            return text  # the field's own validator refuses it
        if found["kind"] == "file":
            return self._mounted(node, path, found["what"])
        if ":-" in found["what"]:
            return self._fail(node, path, "a secret has no default; use ${env:NAME}")
        return SecretStr(self._variable(node, path, found["what"]))

    def _variable(self, node: Node, path: KeyPath, what: str) -> str:
        variable = _VARIABLE.fullmatch(what)
        if not variable:
            return self._fail(
                node, path, f"${{env:{what}}} should be ${{env:NAME}} or ${{env:NAME:-default}}"
            )
        value = self._env.get(variable["name"], variable["default"])
        if value is None:
            name = variable["name"]
            return self._fail(
                node,
                path,
                f"the environment variable {name} is not set; set it, or write ${{env:{name}:-default}}",
            )
        return value

    def _mounted(self, node: Node, path: KeyPath, file: str) -> object:
        if not file.startswith("/"):
            return self._fail(
                node, path, f"${{file:{file}}} should be an absolute path, as in ${{file:/run/secrets/x}}"
            )
        try:
            content = Path(file).read_text(encoding="utf-8")
        except OSError as error:
            return self._fail(node, path, f"the secret's file {file} cannot be read: {error.strerror}")
        except UnicodeDecodeError:
            return self._fail(node, path, f"the secret's file {file} is not UTF-8 text")
        return SecretStr(content.rstrip("\r\n"))

    def _fail(self, node: Node, path: KeyPath, what: str) -> str:
        self._findings.add(node.origin, f"{dotted(path)}: {what}")
        self.failed.add(path)
        return ""
