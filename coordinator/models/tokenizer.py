"""A model's tokenizer and chat template. The one module that touches transformers.

torch must not come with it: the coordinator runs without (pyproject.toml), and starts in a second. `AutoTokenizer`
reads the model's config through modules that import torch wherever it is installed, so the class that it ends at is
taken directly: `TokenizersBackend` (once `PreTrainedTokenizerFast`) loads tokenizer.json as it stands. Hiding torch
while importing would break every later user of transformers in the process, for it remembers what it found.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from coordinator.models.errors import BrokenModelError, PromptError, UnsupportedModelError, shown
from coordinator.models.files import optional_json, regular_file
from coordinator.models.token_bytes import TokenBytes

MAX_TOKENIZER_BYTES = 64 * 2**20
"""Gemma 3's tokenizer.json, the largest in wide use, has 33 MB."""
MAX_TEMPLATE_BYTES = 2**20
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
STOP_FILES = ("generation_config.json", "config.json")

END_OF_TURN = frozenset({"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>"})
"""Ends of a turn or a text under the names that the large model families give them. A file that names only one
stop token often means the text's end and forgets the turn's (Llama 3's and Qwen's first releases)."""

# What base models know best: a written dialogue.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] | trim }}\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
_TEXT_TEMPLATE = "{{ messages[0]['content'] }}"

Decode = Callable[[list[int]], str]


class ChatTokenizer:
    """Turns chats into token ids and token ids into text. Calls may come from any thread."""

    def __init__(self, name: str, tokenizer: Any, stop_tokens: tuple[int, ...]) -> None:
        self._name = name
        self._tokenizer = tokenizer
        self._stop_tokens = stop_tokens
        self._special = frozenset(id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special)
        self._prefix = _prefix(tokenizer)
        self.token_bytes = TokenBytes(tokenizer.backend_tokenizer)
        self._template = tokenizer.chat_template or self._prefix + PLAIN_TEMPLATE
        # Encoding text that is not to become control tokens sets a flag on the shared Rust tokenizer
        # (transformers' `encode_special_tokens`); two threads would see each other's.
        self._lock = threading.Lock()

    @classmethod
    def load(cls, folder: Path) -> ChatTokenizer:
        """Read tokenizer.json and its companions in `folder`; nothing is fetched and no code of the model runs.

        Raises UnsupportedModelError if there is no tokenizer.json, BrokenModelError if a file does not load."""
        check_tokenizer_files(folder)
        tokenizer = _load(folder)
        return cls(folder.name, tokenizer, _find_stop_tokens(folder, tokenizer))

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of `messages` (each has `role` and `content`) up to where the answer begins.

        What looks like a control token in a message is encoded as the text it is. Raises PromptError if the model's
        template does not accept these messages or they are not valid Unicode."""
        if not messages:
            raise PromptError("there is no message")
        return self._encode(messages, self._template)

    def encode_text(self, text: str) -> list[int]:
        """Token ids of plain text to be continued, with the beginning-of-text token if the model has one.

        Raises PromptError if it is not valid Unicode."""
        return self._encode([{"role": "user", "content": text}], self._prefix + _TEXT_TEMPLATE)

    def stop_tokens(self) -> tuple[int, ...]:
        """Ids that end an answer, ascending: what the model's files name, and every known end of a turn."""
        return self._stop_tokens

    def decoder(self) -> TextStream:
        """A new stream of text for one answer."""
        return TextStream(self._decode, self._special)

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of a whole answer, without special tokens."""
        return self._decode([id_ for id_ in token_ids if id_ not in self._special])

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.backend_tokenizer.decode(token_ids, skip_special_tokens=False))

    def _encode(self, messages: Sequence[Mapping[str, str]], template: str) -> list[int]:
        import jinja2

        _check_unicode(messages)
        try:
            with self._lock:
                encoded = self._tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    chat_template=template,
                    add_generation_prompt=True,
                    return_dict=True,
                    sanitize_control_tokens=True,
                )
        except jinja2.TemplateError as error:
            # A template speaks to the writer of the prompt by raising ("roles must alternate").
            raise PromptError(f"the model's chat template says: {shown(error)}") from None
        except ValueError as error:
            raise PromptError(shown(error)) from None
        return list(encoded["input_ids"])


class TextStream:
    """The text of an answer, token by token. All pieces together are the text of all tokens together.

    A token may end within a character; such an end decodes to U+FFFD and waits for the next token. Decoding looks
    back over the piece before, because some decoders treat the first token of a text differently."""

    HELD_CHARS = 3
    """A character has at most 4 bytes: an unfinished one shows as at most 3 replacement characters."""
    MAX_HELD_TOKENS = 256
    """A model that writes nothing but broken characters must not make each token slower than the one before."""

    def __init__(self, decode: Decode, special: frozenset[int]) -> None:
        self._decode = decode
        self._special = special
        self._window: list[int] = []
        self._num_before = 0
        self._num_sent = 0

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that these tokens complete; may be empty."""
        self._window += [id_ for id_ in token_ids if id_ not in self._special]
        text = self._decode(self._window)
        if text.endswith("\ufffd") and len(self._window) < self.MAX_HELD_TOKENS:
            return self._send(text[: max(len(text.rstrip("\ufffd")), len(text) - self.HELD_CHARS)])
        piece = self._send(text)
        self._forget()
        return piece

    def finish(self) -> str:
        """What was held back; an unfinished character is now a replacement character."""
        return self._send(self._decode(self._window))

    def _send(self, text: str) -> str:
        piece = text[self._num_sent :]
        self._num_sent = max(self._num_sent, len(text))
        return piece

    def _forget(self) -> None:
        """Keep only the tokens since the last complete text: the next ones are decoded after them."""
        if len(self._window) == self._num_before:
            return
        self._window = self._window[self._num_before :]
        self._num_before = len(self._window)
        self._num_sent = len(self._decode(self._window))


def check_tokenizer_files(folder: Path) -> None:
    """Raises UnsupportedModelError or BrokenModelError if `folder` has no tokenizer or one too large to be true."""
    if regular_file(folder, "tokenizer.json") is None:
        reason = "it has no tokenizer.json; use a model folder that includes its tokenizer"
        raise UnsupportedModelError(folder.name, reason)
    for name in TOKENIZER_FILES:
        path = regular_file(folder, name)
        limit = MAX_TEMPLATE_BYTES if name.endswith(".jinja") else MAX_TOKENIZER_BYTES
        if path is not None and path.stat().st_size > limit:
            raise BrokenModelError(name, f"{path.stat().st_size} bytes, limit {limit}")


def _load(folder: Path) -> Any:
    # "PyTorch was not found" is as it should be here, and nothing that an operator should read about.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers.tokenization_utils_tokenizers import TokenizersBackend

    try:
        return TokenizersBackend.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # noqa: BLE001 - tokenizers' Rust side raises plain Exception for a bad file
        raise BrokenModelError("tokenizer.json", f"the tokenizer does not load ({shown(error)})") from None


def _prefix(tokenizer: Any) -> str:
    """The beginning-of-text token, if the tokenizer puts one before a plain text."""
    begins_with_bos = tokenizer.encode("")[:1] == [tokenizer.bos_token_id]
    return "{{ bos_token }}" if begins_with_bos else ""


def _find_stop_tokens(folder: Path, tokenizer: Any) -> tuple[int, ...]:
    found: set[int] = set()
    for name in STOP_FILES:
        found |= _listed(name, optional_json(folder, name))
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    added = tokenizer.added_tokens_decoder
    found |= {id_ for id_, token in added.items() if token.special and token.content in END_OF_TURN}
    return tuple(sorted(found))


def _listed(name: str, config: Mapping[str, Any] | None) -> set[int]:
    value = (config or {}).get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(id_) is int and 0 <= id_ < 2**31 for id_ in ids):
        raise BrokenModelError(name, f"eos_token_id is {shown(value)!r}, not a token id or a list of them")
    return set(ids)


def _check_unicode(messages: Sequence[Mapping[str, str]]) -> None:
    for number, message in enumerate(messages):
        for key in ("role", "content"):
            try:
                message[key].encode()
            except UnicodeEncodeError:
                raise PromptError(f"messages[{number}].{key} is not valid Unicode (a lone surrogate)") from None
