"""What can be wrong with a model, its tokenizer or a prompt.

ModelError                  `str(error)` is one plain sentence, fit for a person
+-- ModelNotFoundError           nothing there: no such folder, file, hub id or catalog name
+-- UnsupportedModelError        whole and well, but not something this pool can serve
+-- BrokenModelError             a file is truncated, corrupt or does not fit its neighbours
+-- DownloadError          the hub could not be reached or refused
+-- ConversionError        the converter's process ended without a result
+-- PromptError           the writer of the prompt is to blame, not the model
"""

from __future__ import annotations

SHOWN_CHARS = 200


def shown(text: object) -> str:
    """Foreign text as it may appear in a sentence: one line, cut to 200 characters, control characters escaped."""
    line = " ".join(str(text).split())
    cut = line if len(line) <= SHOWN_CHARS else line[: SHOWN_CHARS - 3] + "..."
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in cut)


class ModelError(Exception):
    """Base of everything here."""


class ModelNotFoundError(ModelError):
    def __init__(self, name: str, detail: str) -> None:
        super().__init__(name, detail)
        self.name = name
        self.detail = detail

    def __str__(self) -> str:
        return f"model {shown(self.name)!r} not found: {self.detail}"


class UnsupportedModelError(ModelError):
    """`reason` says what it has or lacks, and what to use instead."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"model {shown(self.name)!r} cannot be served: {self.reason}"


class BrokenModelError(ModelError):
    """`file` is the file's own name; `detail` gives the tensor or field, the limit and the value seen."""

    def __init__(self, file: str, detail: str) -> None:
        super().__init__(file, detail)
        self.file = file
        self.detail = detail

    def __str__(self) -> str:
        return f"{shown(self.file)} is damaged or incomplete: {self.detail}"


class DownloadError(ModelError):
    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"model {shown(self.name)!r} could not be downloaded: {self.reason}"


class ConversionError(ModelError):
    def __init__(self, source: str, reason: str) -> None:
        super().__init__(source, reason)
        self.source = source
        self.reason = reason

    def __str__(self) -> str:
        return f"{shown(self.source)} could not be converted: {self.reason}"


class PromptError(ModelError):
    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the prompt cannot be used: {self.reason}"
