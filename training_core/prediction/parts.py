"""What is answered already: files in a folder next to the output, at a URL too, so that any machine goes on."""

import json
from dataclasses import dataclass
from typing import Any

from training_core.prediction.places import delete, names_in, read_file, read_object, whole_file

_KEY_FILE = "key.json"

Key = dict[str, Any]


@dataclass(frozen=True)
class Parts:
    """The parts in a folder, by name, all made with the key in it."""

    folder: str

    @property
    def key(self) -> Key:
        """What the parts were made from; empty where there are none."""
        return read_object(f"{self.folder}/{_KEY_FILE}")

    def begin(self, key: Key) -> None:
        """Delete parts that were made with another key."""
        if self.key != key:
            delete(self.folder)
            self.write(_KEY_FILE, json.dumps(key, indent=1).encode())

    def names(self) -> set[str]:
        """The names of all parts."""
        return names_in(self.folder) - {_KEY_FILE}

    def read(self, name: str) -> bytes:
        """The content of a part. Raises ``FileNotFoundError`` when it was deleted meanwhile."""
        content = read_file(f"{self.folder}/{name}")
        if content is None:
            raise FileNotFoundError(f"{self.folder}/{name} was deleted while it was needed; start again")
        return content

    def write(self, name: str, content: bytes) -> None:
        """Add a part."""
        with whole_file(f"{self.folder}/{name}") as stream:
            stream.write(content)
