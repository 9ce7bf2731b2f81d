"""How the pieces of a stage say that one row cannot be worked on."""

from __future__ import annotations

from raybatch.rows import RowFailure


class RowError(Exception):
    """One row's own trouble: `type` is its typed reason, such as "TemplateError", `message` says more."""

    def __init__(self, type_: str, message: str) -> None:
        super().__init__(f"{type_}: {message}")
        self.type = type_
        self.message = message

    def at(self, index: int) -> RowFailure:
        """The failure of the stage's input row `index`."""
        return RowFailure(index=index, type=self.type, message=self.message)
