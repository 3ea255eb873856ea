"""The diagrams of the concepts page: ``python docs/diagrams/draw.py`` writes them.

Each is narrow enough for a telephone, names its own colours for light and dark, and
needs no font that a system does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
WIDTH = 440
LINE = 17

OPENING = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
    'role="img" aria-labelledby="title desc">'
)
ARROW_HEAD = (
    '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
    'markerHeight="7" orient="auto"><path d="M0 0 L10 5 L0 10 z" class="head"/>'
    "</marker></defs>"
)
STYLE = """\
text { font: 14px system-ui, sans-serif; fill: var(--ink); }
.small { font-size: 12.5px; fill: var(--soft); }
.strong { font-weight: 600; }
.middle { text-anchor: middle; }
.end { text-anchor: end; }
.paper { fill: var(--paper); }
.box { fill: var(--box); stroke: var(--line); stroke-width: 1.25; }
.good { fill: var(--good); stroke: var(--good-line); stroke-width: 1.25; }
.bad { fill: var(--bad); stroke: var(--bad-line); stroke-width: 1.25; }
.frame { fill: none; stroke: var(--accent); stroke-width: 2; }
.arrow { fill: none; stroke: var(--soft); stroke-width: 1.5; marker-end: url(#head); }
.head { fill: var(--soft); }
.bracket { fill: none; stroke: var(--accent); stroke-width: 1.5; }
svg {
  --paper: #fff; --box: #f2f5f7; --line: #8a99a6; --ink: #1d2730; --soft: #4a5863;
  --good: #e3f3e8; --good-line: #3d8a57; --bad: #fbe9e7; --bad-line: #b3493c;
  --accent: #0b5d7a;
}
@media (prefers-color-scheme: dark) {
  svg {
    --paper: #131416; --box: #22282d; --line: #71808c; --ink: #e6ebef;
    --soft: #b3bec7; --good: #16301f; --good-line: #57ab74; --bad: #3b1d1a;
    --bad-line: #d9796c; --accent: #7cc7e0;
  }
}
"""


class Drawing:
    """Boxes, arrows and words, collected as lines of SVG."""

    def __init__(self, title: str, description: str, height: int) -> None:
        self.title = title
        self.description = description
        self.height = height
        self.parts: list[str] = []

    def text(self, x: int, y: int, lines: Sequence[str], kind: str = "") -> None:
        """Write lines, the first one's base line at ``y``."""
        for number, line in enumerate(lines):
            self.parts.append(
                f'<text x="{x}" y="{y + number * LINE}" class="{kind}">'
                f"{escape(line, quote=False)}</text>"
            )

    def box(
        self, x: int, y: int, width: int, lines: Sequence[str], kind: str = "box"
    ) -> None:
        """Draw a box as high as its lines; the first line is its name."""
        height = 18 + LINE * len(lines)
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="7" '
            f'class="{kind}"/>'
        )
        middle = x + width // 2
        self.text(middle, y + 22, lines[:1], "strong middle")
        self.text(middle, y + 22 + LINE, lines[1:], "small middle")

    def arrow(self, *points: tuple[int, int]) -> None:
        """Draw an arrow through points, its head at the last one."""
        way = " ".join(f"{x},{y}" for x, y in points)
        self.parts.append(f'<polyline points="{way}" class="arrow"/>')

    def bracket(self, x: int, top: int, bottom: int) -> None:
        """Draw a bracket that is open to the left."""
        self.parts.append(
            f'<path d="M{x - 8} {top} H{x} V{bottom} H{x - 8}" class="bracket"/>'
        )

    def frame(self, x: int, y: int, width: int, height: int) -> None:
        """Draw a border around what is one."""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="10" '
            'class="frame"/>'
        )

    def render(self) -> str:
        """Return the picture as a file."""
        lines = [
            OPENING.format(width=WIDTH, height=self.height),
            f'<title id="title">{escape(self.title)}</title>',
            f'<desc id="desc">{escape(self.description)}</desc>',
            f"<style>\n{STYLE}</style>",
            ARROW_HEAD,
            f'<rect width="{WIDTH}" height="{self.height}" rx="8" class="paper"/>',
            *self.parts,
            "</svg>",
        ]
        return "\n".join(lines) + "\n"


def request() -> Drawing:
    """Draw the path of a request, with each place where it can end."""
    drawing = Drawing(
        "The path of a request",
        "Authentication, permissions and throttles come first, then the key, scope and "
        "fingerprint, then the claim. The winner runs the handler, and its response is "
        "stored; others get the stored response or are refused.",
        632,
    )
    left, width, exit_x, exit_width = 12, 214, 262, 166
    steps = (
        (
            ("POST with a key",),
            None,
        ),
        (
            ("Is the caller allowed?", "authentication, permissions,", "throttles"),
            ("project's error", "no record"),
        ),
        (
            ("Is it one valid key?", "query or header"),
            ("refused", "no record"),
        ),
        (
            ("Whose key, for what?", "scope and fingerprint"),
            None,
        ),
        (
            ("Claim", "one request inserts", "the record"),
            None,
        ),
    )
    y = 12
    for lines, way_out in steps:
        drawing.box(left, y, width, lines)
        height = 18 + LINE * len(lines)
        if way_out:
            drawing.box(exit_x, y, exit_width, way_out, "bad")
            drawing.arrow((left + width, y + 26), (exit_x - 2, y + 26))
        drawing.arrow(
            (left + width // 2, y + height), (left + width // 2, y + height + 24)
        )
        y += height + 26
    claim = y - 26 - 18 - 3 * LINE
    responses = (
        (("stored response", "if there is one"), "good"),
        (("refused", "in progress elsewhere:", "retry later"), "bad"),
        (("refused", "used for something else"), "bad"),
        (("refused", "outcome unknown"), "bad"),
    )
    way_out_y = claim
    for number, (lines, kind) in enumerate(responses):
        drawing.box(exit_x, way_out_y, exit_width, lines, kind)
        if number == 0:
            drawing.arrow((left + width, way_out_y + 26), (exit_x - 2, way_out_y + 26))
        else:
            drawing.arrow(
                (244, claim + 26),
                (244, way_out_y + 26),
                (exit_x - 2, way_out_y + 26),
            )
        way_out_y += 18 + LINE * len(lines) + 12
    for lines in (
        ("Handler", "and its response, rendered"),
        ("Complete", "the response into the record"),
    ):
        drawing.box(left, y, width, lines)
        drawing.arrow((left + width // 2, y + 52), (left + width // 2, y + 76))
        y += 78
    drawing.box(left, y, width, ("the handler's response",), "good")
    return drawing


def transaction() -> Drawing:
    """Draw what atomic mode commits together."""
    drawing = Drawing(
        "Atomic mode: one transaction",
        "Claim, handler, rendering and complete stand between BEGIN and COMMIT. A "
        "worker that dies before the COMMIT leaves nothing and the retry runs; after "
        "it, effect and response are there, and the retry gets a replay.",
        418,
    )
    drawing.frame(12, 34, 262, 296)
    drawing.text(24, 24, ("BEGIN",), "strong")
    y = 48
    for lines in (
        ("Claim", "INSERT of the record"),
        ("Handler", "its own writes"),
        ("Rendering", "the response becomes bytes"),
        ("Complete", "UPDATE of the record"),
    ):
        drawing.box(36, y, 214, lines)
        if y > 48:
            drawing.arrow((143, y - 18), (143, y - 2))
        y += 70
    drawing.text(24, 350, ("COMMIT",), "strong")
    drawing.arrow((143, 332), (143, 368))
    drawing.box(36, 370, 214, ("the response is sent",), "good")
    drawing.bracket(290, 36, 328)
    drawing.text(300, 160, ("dies here:",), "strong")
    drawing.text(300, 160 + LINE, ("nothing is left,", "the retry runs"), "small")
    drawing.bracket(290, 340, 404)
    drawing.text(300, 360, ("dies here:",), "strong")
    drawing.text(
        300, 360 + LINE, ("both are there, the", "retry gets a replay"), "small"
    )
    return drawing


def states() -> Drawing:
    """Draw the states of a record in leased mode, and the ways between them."""
    drawing = Drawing(
        "States of a record in leased mode",
        "A claim makes a record in progress. Complete makes it completed; a lease that "
        "ends, or a failure, makes it abandoned. A retry may take an abandoned record "
        "over, and a person may resolve or release it.",
        440,
    )
    drawing.box(140, 16, 160, ("no record", "the key is new"))
    drawing.box(140, 176, 160, ("in progress", "the lease is live"))
    drawing.box(12, 366, 150, ("completed", "retries get a replay"), "good")
    drawing.box(278, 366, 150, ("abandoned", "outcome unknown"), "bad")
    drawing.arrow((200, 68), (200, 174))
    drawing.text(192, 126, ("claim",), "small end")
    drawing.arrow((240, 176), (240, 70))
    drawing.text(249, 134, ("released, or refused", "before it had acted"), "small")
    drawing.arrow((180, 228), (100, 364))
    drawing.text(128, 300, ("complete",), "small end")
    drawing.arrow((240, 228), (306, 364))
    drawing.text(254, 286, ("failure, or the",), "small end")
    drawing.text(262, 286 + LINE, ("lease ends",), "small end")
    drawing.arrow((340, 364), (280, 230))
    drawing.text(318, 276, ("a retry", "takes over"), "small")
    drawing.arrow((278, 392), (164, 392))
    drawing.text(220, 410, ("resolved, or a", "late response"), "small middle")
    drawing.arrow((40, 366), (40, 42), (138, 42))
    drawing.text(48, 84, ("expired,", "or released"), "small")
    drawing.arrow((414, 366), (414, 42), (302, 42))
    drawing.text(406, 84, ("released,", "or expired"), "small end")
    return drawing


def leased_crash() -> Drawing:
    """Draw what a crash leaves in leased mode."""
    drawing = Drawing(
        "Leased mode: three commits",
        "The claim is committed first, then the handler acts, then the response is "
        "stored. A worker that dies before the first leaves nothing; between, the "
        "outcome is unknown once the lease has ended; after the last, the retry gets "
        "a replay.",
        378,
    )
    y = 34
    for lines in (
        ("Claim", "INSERT, COMMIT"),
        ("Handler", "an external call"),
        ("Handler", "its own writes, COMMIT"),
        ("Complete", "UPDATE, COMMIT"),
    ):
        drawing.box(36, y, 214, lines)
        drawing.arrow((143, y + 52), (143, y + 72))
        y += 74
    drawing.box(36, y, 214, ("the response is sent",), "good")
    drawing.bracket(290, 12, 56)
    drawing.text(300, 30, ("dies here:",), "strong")
    drawing.text(300, 30 + LINE, ("the retry runs",), "small")
    drawing.bracket(290, 64, 280)
    drawing.text(300, 152, ("dies here:",), "strong")
    drawing.text(
        300,
        152 + LINE,
        ("in progress; then,", "when the lease has", "ended, abandoned"),
        "small",
    )
    drawing.bracket(290, 288, 364)
    drawing.text(300, 316, ("dies here:",), "strong")
    drawing.text(300, 316 + LINE, ("the retry gets", "a replay"), "small")
    return drawing


DRAWINGS: dict[str, Callable[[], Drawing]] = {
    "request": request,
    "transaction": transaction,
    "states": states,
    "leased-crash": leased_crash,
}


def main() -> None:
    """Write every drawing beside this file."""
    for name, draw in DRAWINGS.items():
        (FOLDER / f"{name}.svg").write_text(draw().render(), encoding="utf-8")


if __name__ == "__main__":
    main()
