"""The architecture as blocks: each block's one layer drawn once, with how many times it is executed."""

from __future__ import annotations

from merino_edge.report.contents import BlockShape, Shape, quantity
from merino_edge.report.drawing import Chart, Drawing, Table, box, element, label, line, number, text_width

CARD, BETWEEN, SHIFT = 94.0, 34.0, 5.0
END_HEIGHT, MOST_CARDS = 40.0, 4


def architecture_chart(shape: Shape) -> Chart:
    """Draw a model from its tokens at the top to its logits at the bottom."""
    rows = tuple(
        (
            str(i),
            str(b.width),
            str(b.heads),
            str(b.ffn_width),
            f"{b.depth}",
            quantity(b.parameters, "count"),
            quantity(b.parameters * b.depth, "count"),
        )
        for i, b in enumerate(shape.blocks, start=1)
    )
    shared = [i for i, b in enumerate(shape.blocks, start=1) if b.depth > 1]
    words = (
        f"Blocks {', '.join(map(str, shared))} execute one layer several times." if shared else "No layer is repeated."
    )
    return Chart(
        key="architecture",
        title="Architecture",
        description=f"{shape.description}. {len(shape.blocks)} blocks, {sum(b.depth for b in shape.blocks)} executed "
        f"layers. {words} The token table is also the head.",
        draw=lambda width: _draw(shape, width),
        table=Table(
            ("block", "width", "heads", "FFN width", "executions of its one layer", "parameters stored", "executed"),
            rows,
        ),
    )


def _draw(shape: Shape, width: float) -> Drawing:
    margin = 34.0 if width < 500 else 44.0  # for the line that ties table and head, and the loops
    left, right = margin, width - margin - 22
    inner = right - left - 24
    largest = max(max(b.width, b.ffn_width) for b in shape.blocks)
    per_unit = inner / largest
    elements: list[str] = []
    top = 4.0
    table = f"{shape.vocab_size:,} x {shape.embedding_width}, {quantity(shape.table_parameters, 'count')}"
    elements += _end("token table", table, left, right, top)
    first = top + END_HEIGHT / 2
    top += END_HEIGHT
    for i, block in enumerate(shape.blocks, start=1):
        elements += _down((left + right) / 2, top, top + BETWEEN - 4, block.projected_from, block.width)
        top += BETWEEN
        elements += _card(i, block, left, right, top, per_unit)
        top += CARD + SHIFT * min(block.depth - 1, MOST_CARDS - 1)
    back = shape.blocks[-1].width if shape.output_projection else None
    elements += _down((left + right) / 2, top, top + BETWEEN - 4, back, shape.embedding_width)
    top += BETWEEN
    elements += _end("norm, then head", "the same table, transposed", left, right, top)
    last, out = top + END_HEIGHT / 2, left - 16.0
    tie = f"M{number(left)} {number(first)}H{number(out)}V{number(last)}H{number(left)}"
    elements.append(element("path", d=tie, class_="tied"))
    middle = (first + last) / 2
    elements.append(
        element("text", text="one table, used twice", x=0.0, y=0.0, class_="small middle",
                transform=f"translate({number(out - 6)} {number(middle)}) rotate(-90)")
    )  # fmt: skip
    return Drawing(top + END_HEIGHT + 6, tuple(elements))


def _end(name: str, what: str, left: float, right: float, top: float) -> list[str]:
    return [
        box(left, top, right - left, END_HEIGHT, "card", radius=8, tip=None),
        label(left + 12, top + 17, name, "strong"),
        label(left + 12, top + 33, what, "small"),
    ]


def _down(x: float, top: float, end: float, before: int | None, after: int) -> list[str]:
    found = [line(x, top, x, end - 6, "arrow"), element("path", d=_head(x, end), class_="arrow-head")]
    if before is not None:
        found.append(label(x + 10, (top + end) / 2 + 4, f"projection {before} to {after}", "small"))
    return found


def _head(x: float, end: float) -> str:
    return f"M{number(x)} {number(end)}l-4.5 -8h9Z"


def _card(i: int, block: BlockShape, left: float, right: float, top: float, per_unit: float) -> list[str]:
    """Draw a block: cards behind it for its further executions, a loop with their number."""
    found = []
    for n in range(min(block.depth, MOST_CARDS) - 1, 0, -1):
        found.append(box(left + SHIFT * n, top + SHIFT * n, right - left, CARD, "behind", radius=8))
    found.append(box(left, top, right - left, CARD, "card point", radius=8, tip=_tip(i, block)))
    told = f"{quantity(block.parameters, 'count')} stored"
    uses = f"1 layer, {block.depth} times" if block.depth > 1 else "1 layer, once"
    found.append(label(left + 12, top + 19, f"block {i}", "strong"))
    found.append(
        label(
            left + 12 + text_width(f"block {i} ", 13) + 6, top + 19, uses, "loop-text" if block.depth > 1 else "small"
        )
    )
    if right - left > 300:
        found.append(label(right - 12, top + 19, told, "small end"))
    rows = (
        ("attention", block.width, f"attention {block.width}, {block.heads} heads"),
        ("ffn", block.ffn_width, f"feed-forward {block.ffn_width}"),
    )
    roomy = right - left > 300
    for row, (kind, size, words) in enumerate(rows):
        wide = max(3.0, size * per_unit)
        if not roomy:
            y = top + 28 + 32 * row
            found += [
                label(left + 12, y + 10, words, "small"),
                box(left + 12, y + 15, wide, 10, f"part k-{kind}", radius=2),
            ]
            continue
        y, inside = top + 30 + 29 * row, text_width(words, 12) + 12 < wide
        found.append(box(left + 12, y, wide, 23, f"part k-{kind}", radius=3))
        found.append(label(left + (20 if inside else 18 + wide), y + 16, words, f"l-{kind}" if inside else None))
    if block.depth > 1:
        found += _loop(block.depth, right + SHIFT * (min(block.depth, MOST_CARDS) - 1), top)
    return found


def _loop(depth: int, x: float, top: float) -> list[str]:
    """Draw an arrow from a layer's end back to its beginning, with how often it is run."""
    low, high = top + CARD - 20, top + 20
    out, end = number(x + 24), number(x + 7)
    arc = f"M{number(x)} {number(low)}C{out} {number(low)} {out} {number(high)} {end} {number(high)}"
    head = f"M{number(x)} {number(high)}l8 -4.5v9Z"
    return [
        element("path", d=arc, class_="loop"),
        element("path", d=head, class_="loop-head"),
        label(x + 21, (low + high) / 2 + 5, f"×{depth}", "strong loop-text"),
    ]


def _tip(i: int, block: BlockShape) -> str:
    lines = [f"block {i}: width {block.width}, {block.heads} heads, FFN {block.ffn_width}"]
    times = "once" if block.depth == 1 else f"{block.depth} times with the same weights"
    lines.append(f"its one layer is executed {times}")
    stored, executed = block.parameters, block.parameters * block.depth
    lines.append(f"{quantity(stored, 'count')} parameters stored, {quantity(executed, 'count')} executed")
    if block.latency_ms is not None:
        lines.append(f"predicted {quantity(block.latency_ms, 'ms')} a token")
    return "\n".join(lines)
