"use strict";
// Marks of a chart tell what they are: under the pointer, and one after the other by the arrow keys.
(() => {
  const tip = document.getElementById("tip");
  let shown = null;

  function show(mark) {
    if (shown) shown.classList.remove("near");
    shown = mark;
    tip.hidden = !mark;
    if (!mark) return;
    mark.classList.add("near");
    tip.textContent = mark.dataset.tip;
    const at = mark.getBoundingClientRect(), box = tip.getBoundingClientRect();
    const left = Math.min(Math.max(8, at.left + at.width / 2 - box.width / 2), innerWidth - box.width - 8);
    const above = at.top - box.height - 10;
    tip.style.left = `${left}px`;
    tip.style.top = `${above > 4 ? above : Math.min(at.bottom + 10, innerHeight - box.height - 4)}px`;
  }

  function nearest(marks, x, y) {
    let best = null, least = 18 * 18;
    for (const mark of marks) {
      const box = mark.getBoundingClientRect();
      const dx = Math.max(box.left - x, 0, x - box.right), dy = Math.max(box.top - y, 0, y - box.bottom);
      const far = dx * dx + dy * dy;
      const off = ((box.left + box.right) / 2 - x) ** 2 + ((box.top + box.bottom) / 2 - y) ** 2;
      if (far <= least && far < 18 * 18 && (best === null || far < least || off < best.off)) {
        least = far;
        best = { mark, off };
      }
    }
    return best && best.mark;
  }

  for (const chart of document.querySelectorAll("svg.chart")) {
    const marks = [...chart.querySelectorAll("[data-tip]")];
    if (!marks.length) continue;
    const first = marks.find((mark) => mark.classList.contains("winner")) || marks[0];
    for (const mark of marks) {
      mark.setAttribute("role", "img");
      mark.setAttribute("aria-label", mark.dataset.tip.replaceAll("\n", ", "));
      mark.setAttribute("tabindex", mark === first ? "0" : "-1");
      mark.addEventListener("focus", () => show(mark));
      mark.addEventListener("blur", () => show(null));
    }
    let order = null; // from left to right, once the chart is shown: a hidden one has no places
    const walk = () => {
      const places = new Map(marks.map((mark) => [mark, mark.getBoundingClientRect()]));
      const middle = (mark) => places.get(mark).left + places.get(mark).width / 2;
      return [...marks].sort((a, b) => middle(a) - middle(b) || places.get(a).top - places.get(b).top);
    };
    chart.addEventListener("pointermove", (event) => show(nearest(marks, event.clientX, event.clientY)));
    chart.addEventListener("pointerdown", (event) => show(nearest(marks, event.clientX, event.clientY)));
    chart.addEventListener("pointerleave", () => show(null));
    chart.addEventListener("keydown", (event) => {
      order = order || walk();
      const here = order.indexOf(document.activeElement);
      if (here < 0) return;
      const steps = { ArrowRight: here + 1, ArrowDown: here + 1, ArrowLeft: here - 1, ArrowUp: here - 1, Home: 0, End: order.length - 1 };
      if (event.key === "Escape") return show(null);
      if (!(event.key in steps)) return;
      event.preventDefault();
      const next = order[Math.min(Math.max(steps[event.key], 0), order.length - 1)];
      order[here].setAttribute("tabindex", "-1");
      next.setAttribute("tabindex", "0");
      next.focus();
    });
  }
  addEventListener("scroll", () => shown && document.activeElement !== shown && show(null), { passive: true });
})();
