"""What was measured once is not measured again: JSON documents in the cache, by what they depend on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefopt.errors import IntegrityError
from prefopt.store.files import make_folder, read_json, sha256_json, write_json


class Remembered:
    """Documents in a folder of the cache; one that is damaged is made again.

    Args:
        folder: Where they are kept.
        common: What every document depends on, beside its own identity.
        log: Takes a line when a document is used instead of being made, or is damaged.
    """

    def __init__(self, folder: Path, common: object, log: Callable[[str], None]) -> None:
        self._folder = folder
        self._common = common
        self._log = log

    def get(self, what: str, identity: object, make: Callable[[], Any]) -> Any:
        """The document of an identity, made when it is not there.

        Args:
            what: What it is, for the log.
            identity: Everything that decides its content, as JSON.
            make: Makes it, as JSON.
        """
        path = self._folder / f"{sha256_json([what, self._common, identity])}.json"
        if path.is_file():
            try:
                kept = read_json(path)
                if kept["sha256"] == sha256_json(kept["document"]):
                    self._log(f"{what} known from an earlier evaluation")
                    return kept["document"]
            except (IntegrityError, KeyError, TypeError):
                pass
            self._log(f"{path} is damaged and made again")
        document = make()
        make_folder(self._folder)
        write_json(path, {"sha256": sha256_json(document), "document": document})
        return document
