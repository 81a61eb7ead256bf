"""The training curve, and quality against size."""

from __future__ import annotations

from merino_edge.report.axis import Scale, frame, scale_over
from merino_edge.report.contents import Curve, Export, Quality, quantity
from merino_edge.report.drawing import Chart, Drawing, Table, label, legend, line, mark, polyline, text_width

MOST_ROWS = 40
SHAPE_OF_BITS = {32: "square", 16: "square", 8: "circle", 4: "triangle"}


def training_chart(curve: Curve) -> Chart:
    """Draw the loss of training, and that on held-out text at its end."""
    first, last = curve.points[0], curve.points[-1]
    held_out = "" if curve.held_out is None else f" On held-out text it was {curve.held_out:.3f} at the end."
    step = max(1, -(-len(curve.points) // MOST_ROWS))
    chosen = curve.points[::-1][::step][::-1]
    rows = [(quantity(tokens, "count"), f"{loss:.4f}", "-") for tokens, loss in chosen]
    if curve.held_out is not None:
        rows.append((quantity(last[0], "count"), "-", f"{curve.held_out:.4f}"))
    return Chart(
        key="training",
        title="Loss over training",
        description=f"Training loss fell from {first[1]:.3f} to {last[1]:.3f} nats a token after "
        f"{quantity(last[0], 'count')} tokens.{held_out}",
        draw=lambda width: _draw_curve(curve, width),
        table=Table(("tokens", "training loss", "held-out loss"), tuple(rows)),
    )


def _draw_curve(curve: Curve, width: float) -> Drawing:
    entries = [("line", "front-line", "training")]
    if curve.held_out is not None:
        entries.append(("diamond", "measured", "held-out text, at the end"))
    head, height = legend(entries, width, 12), (260.0 if width > 500 else 220.0)
    top = head.height + 40
    losses = [loss for _, loss in curve.points] + ([] if curve.held_out is None else [curve.held_out])
    x = scale_over([tokens for tokens, _ in curve.points], 48, width - 14, zero=True)
    y = scale_over(losses, top + height, top)
    elements = [*head.elements, *frame(x, y, "tokens", "count", "loss, nats a token")]
    places = [(x.place(tokens), y.place(loss)) for tokens, loss in curve.points]
    elements.append(polyline(places, "front-line"))
    step = max(1, len(places) // 60)
    chosen = sorted({*range(0, len(places), step), len(places) - 1})
    for i in chosen:
        tokens, loss = curve.points[i]
        tip = f"training\n{quantity(tokens, 'count')} tokens\nloss {loss:.4f} nats a token"
        elements.append(mark("circle", places[i][0], places[i][1], 2.6, "point front", tip))
    if curve.held_out is not None:
        at = x.place(curve.points[-1][0]), y.place(curve.held_out)
        elements.append(line(x.start, at[1], at[0], at[1], "measured-line faint"))
        elements.append(label(x.start + 6, at[1] - 6, f"held out {curve.held_out:.3f}", "small"))
        tip = f"held-out text\nloss {curve.held_out:.4f} nats a token"
        elements.append(mark("diamond", at[0], at[1], 5.5, "point measured", tip))
    return Drawing(top + height + 44, tuple(elements))


def quality_chart(quality: Quality) -> Chart:
    """Draw perplexity against the size of the file."""
    told = [e for e in quality.exports if e.perplexity is not None]
    rows = tuple(
        (
            e.label,
            quantity(e.file_bytes, "bytes"),
            "-" if e.perplexity is None else f"{e.perplexity:.4g}",
            "-" if e.bits_per_byte is None else f"{e.bits_per_byte:.4f}",
            (e.reason or "-") if e.change is None else f"{100 * e.change:+.2f} %",
        )
        for e in quality.exports
    )
    return Chart(
        key="quality",
        title="Quality against size",
        description="; ".join(
            f"{e.label}: {quantity(e.file_bytes, 'bytes')}, perplexity {e.perplexity:.4g}" for e in told
        ),
        draw=lambda width: _draw_quality(told, width),
        table=Table(("file", "size", "perplexity", "bits per byte", "against fp32"), rows),
    )


def _draw_quality(exports: list[Export], width: float) -> Drawing:
    bits = sorted({e.bits for e in exports}, reverse=True)
    entries = [(SHAPE_OF_BITS.get(b, "circle"), _class_of(b), f"{b} bits") for b in bits]
    head, height = legend(entries, width, 12), (240.0 if width > 500 else 220.0)
    top = head.height + 40
    x = scale_over([float(e.file_bytes) for e in exports], 56, width - 14, zero=True)
    y = scale_over([e.perplexity or 0.0 for e in exports], top + height, top)
    elements = [
        *head.elements,
        *frame(x, y, "size of the file", "bytes", "perplexity (lower is better)"),
    ]
    taken: list[tuple[float, float, float]] = []
    for e in sorted(exports, key=lambda e: e.file_bytes):
        at = x.place(e.file_bytes), y.place(e.perplexity or 0.0)
        tip = f"{e.label}\n{quantity(e.file_bytes, 'bytes')}\nperplexity {e.perplexity:.5g}"
        tip += "" if e.bits_per_byte is None else f"\n{e.bits_per_byte:.4f} bits per byte"
        tip += "" if e.change is None else f"\n{100 * e.change:+.2f} % against fp32"
        elements.append(mark(SHAPE_OF_BITS.get(e.bits, "circle"), at[0], at[1], 5.5, f"point {_class_of(e.bits)}", tip))
        elements += _named(e.label, at, x, y, taken)
    return Drawing(top + height + 44, tuple(elements))


def _named(
    text: str, at: tuple[float, float], x: Scale, y: Scale, taken: list[tuple[float, float, float]]
) -> list[str]:
    """Write a name beside its mark, else above or below it, where no other name stands and the frame ends."""
    wide = text_width(text, 12)
    above = min(at[0] + 10, x.end - wide)
    places = [(at[0] + 10, 4.0), (at[0] - 10 - wide, 4.0), *((above, shift) for shift in (-12.0, 20.0, -28.0, 36.0))]
    for left, shift in places:
        base = at[1] + shift
        inside = x.start < left and left + wide <= x.end and y.end < base - 8 and base < y.start
        free = all(abs(base - b) > 14 or left + wide < start or end < left for start, end, b in taken)
        if inside and free:
            taken.append((left, left + wide, base))
            return [label(left, base, text, "small")]
    return []


def _class_of(bits: int) -> str:
    return {8: "measured", 4: "winner"}.get(bits, "front")
