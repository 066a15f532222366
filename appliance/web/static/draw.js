/* Boxes drawn with the pointer on a picture: each becomes a line of a text area, in pixels of the image. */
"use strict";
(() => {
  let drawn = null;

  const at = (event, sheet) => {
    const area = sheet.getBoundingClientRect();
    const share = (value, from, size) => Math.min(Math.max((value - from) / size, 0), 1);
    return [share(event.clientX, area.left, area.width), share(event.clientY, area.top, area.height)];
  };

  const show = () => {
    const [left, right] = [drawn.from[0], drawn.to[0]].sort((a, b) => a - b);
    const [top, bottom] = [drawn.from[1], drawn.to[1]].sort((a, b) => a - b);
    const style = drawn.box.style;
    [style.left, style.top] = [`${left * 100}%`, `${top * 100}%`];
    [style.width, style.height] = [`${(right - left) * 100}%`, `${(bottom - top) * 100}%`];
    return [left, top, right, bottom];
  };

  document.addEventListener("pointerdown", (event) => {
    const sheet = event.target.closest("[data-draws]");
    if (!sheet || event.button !== 0 || !document.getElementById(sheet.dataset.draws)) return;
    event.preventDefault();
    const box = document.createElement("span");
    box.className = "box person";
    sheet.append(box);
    const from = at(event, sheet);
    drawn = { sheet, box, from, to: from };
    sheet.setPointerCapture(event.pointerId);
  });

  document.addEventListener("pointermove", (event) => {
    if (!drawn) return;
    drawn.to = at(event, drawn.sheet);
    show();
  });

  const end = (event) => {
    if (!drawn) return;
    const { sheet, box } = drawn;
    const [left, top, right, bottom] = show();
    drawn = null;
    const columns = Number(sheet.dataset.columns);
    const rows = Number(sheet.dataset.rows);
    const line = [Math.floor(left * columns), Math.floor(top * rows), Math.ceil(right * columns), Math.ceil(bottom * rows)];
    if (event.type === "pointercancel" || line[2] - line[0] < 3 || line[3] - line[1] < 3) return box.remove();
    const area = document.getElementById(sheet.dataset.draws);
    area.value = `${area.value.trim()}\n${line.join(" ")}`.trim();
    area.dispatchEvent(new Event("input", { bubbles: true }));
  };
  document.addEventListener("pointerup", end);
  document.addEventListener("pointercancel", end);
})();
