"""Make the tables and figures of a page anew from its runs: uv run scripts/report.py docs/results.md

The page says itself what stands in it. Whatever lies between these two lines is replaced by what the command tells:

    <!-- compare: runs/pairs --rows mixer --columns position -->
    <!-- end -->

A figure's command names its file below the page's folder, --plot extrapolation --out extrapolation. What cannot be
made, because its runs are elsewhere, stays as it is, and is told. Status 0: all of it is new; 1: something is not;
with --check nothing is written, and 2 says that a page is not what its runs say.
"""

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

COMPARE = Path(__file__).with_name("compare.py")
BLOCK = re.compile(r"(<!-- compare: (.*?) -->\n)(.*?)(<!-- end -->)", re.S)


class Page:
    """A page's file; with `check` figures are drawn elsewhere, and compared."""

    def __init__(self, path: Path, check: bool) -> None:
        self.path, self.check, self.text = path, check, path.read_text()
        self.notes: list[str] = []  # about what cannot be made
        self.old = False  # whether a figure is not what its runs say

    def renewed(self) -> str:
        """Its text with all blocks made anew."""
        return BLOCK.sub(self._made, self.text)

    def _made(self, found: re.Match[str]) -> str:
        head, command, before, end = found.groups()
        words = shlex.split(command)
        try:
            told = self._figure(words) if "--plot" in words else compared([*words, "--format", "markdown"])
        except ValueError as error:
            self.notes.append(f"left as it was: {command}: {error}")
            return f"{head}{before}{end}"
        return f"{head}\n{told}\n{end}"

    def _figure(self, words: list[str]) -> str:
        """A link to a figure, which is drawn below the page's folder. ValueError where no --out says where."""
        if "--out" not in words:
            raise ValueError("a figure needs --out, a file below the page's folder")
        out = words.index("--out") + 1
        place = Path(words[out]).with_suffix(".png")
        with tempfile.TemporaryDirectory() as other:
            folder = Path(other) if self.check else self.path.parent
            compared([*words[: out - 1], *words[out + 1 :], "--out", str(folder / place)])
            known, drawn = self.path.parent / place, folder / place
            self.old |= not known.is_file() or known.read_bytes() != drawn.read_bytes()
        what = words[words.index("--plot") + 1].replace("_", " ").replace(":", " by ")
        return f"![{what}]({place.as_posix()})\n"


def compared(words: Sequence[str]) -> str:
    """What compare.py prints. ValueError with its own sentence where it fails."""
    done = subprocess.run([sys.executable, str(COMPARE), *words], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(done.stderr.strip() or f"compare.py ended with {done.returncode}")
    return done.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """Renew the pages."""
    parser = argparse.ArgumentParser(
        prog="report.py", description="Tables and figures of a page, from its runs."
    )
    parser.add_argument("pages", nargs="+", type=Path, help="Markdown with <!-- compare: ... --> in it")
    parser.add_argument("--check", action="store_true", help="write nothing; 2 where a page would change")
    told = parser.parse_args(arguments)
    notes: list[str] = []
    old = False
    for path in told.pages:
        if not path.is_file() or not BLOCK.search(path.read_text()):
            print(f"{path} is no page with <!-- compare: ... --> and <!-- end --> in it", file=sys.stderr)
            return 1
        page = Page(path, told.check)
        new = page.renewed()
        changed = page.old or new != page.text
        if new != page.text and not told.check:
            path.write_text(new)
        count = len(BLOCK.findall(new))
        state = "as its runs say" if not changed else "not what its runs say" if told.check else "made anew"
        print(f"{path}: {count} {'block' if count == 1 else 'blocks'}, {state}")
        notes += page.notes
        old |= told.check and changed
    print(*notes, sep="\n", end="\n" if notes else "", file=sys.stderr)
    return 1 if notes else 2 if old else 0


if __name__ == "__main__":
    sys.exit(main())
