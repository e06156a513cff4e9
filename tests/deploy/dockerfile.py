"""The Dockerfile as its tests read it: stages, their instructions, and what these copy."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Stage:
    """What stands between one FROM and the next."""

    base: str
    own: tuple[str, ...]  # its instructions, one line each, without comments

    @property
    def whole(self) -> tuple[str, ...]:
        """Its instructions, behind those of the stages that it stands on."""
        return (STAGES[self.base].whole if self.base in STAGES else ()) + self.own

    def words(self, keyword: str) -> list[str]:
        """What follows a keyword, for each such instruction of the whole."""
        return [one.removeprefix(f"{keyword} ") for one in self.whole if one.startswith(f"{keyword} ")]

    def copy(self, folder: Path) -> None:
        """Copies what the whole stage has of the project. Raises AssertionError where a builder is not sent it."""
        sent = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        for words in self.words("COPY"):
            *sources, target = words.split()
            assert target.startswith("./"), f"COPY {words}: not below the working directory"
            for source in sources:
                assert f"!{source}" in sent, f"{source} is not in .dockerignore"
                if (ROOT / source).is_dir():
                    ignored = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(ROOT / source, folder / target, ignore=ignored, dirs_exist_ok=True)
                else:
                    (folder / target).mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / source, folder / target)


def read() -> dict[str, Stage]:
    """The stages by name, in their order."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    _, *stages = re.split(r"^FROM ", re.sub(r"\s*\\\n\s*", " ", text), flags=re.MULTILINE)
    found = {}
    for stage in stages:
        first, *own = filter(None, stage.split("\n"))
        base, name = first.split(" AS ")
        found[name] = Stage(base, tuple(own))
    return found


STAGES = read()
