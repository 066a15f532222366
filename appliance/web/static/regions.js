/* Rectangles on a picture: drawn with the pointer or typed, in pixels of the picture; the form sends them. */
"use strict";
(() => {
  const EDGES = ["Left", "Top", "Right", "Bottom"];
  const SMALLEST = 3;
  let boxes = [];
  let drag = null;
  let seen = null;

  const editor = () => document.getElementById("region-editor");
  const board = () => document.getElementById("region-overlay");
  const limits = () => ({ columns: Number(editor().dataset.columns), rows: Number(editor().dataset.rows) });
  const full = () => boxes.length >= Number(editor().dataset.most);

  const rectangle = ([left, top, right, bottom]) => {
    const shape = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const values = { x: left, y: top, width: Math.max(0, right - left), height: Math.max(0, bottom - top) };
    for (const [name, value] of Object.entries(values)) shape.setAttribute(name, String(value));
    return shape;
  };

  const paint = () => {
    const shown = drag ? [...boxes, drag.box] : boxes;
    board().querySelector(".drawn").replaceChildren(...shown.map(rectangle));
    const field = editor().querySelector("input[name='field-boxes']");
    if (field) field.value = JSON.stringify(boxes);
  };

  const line = (box, index) => {
    const row = document.createElement("fieldset");
    const title = document.createElement("legend");
    title.textContent = `Box ${index + 1}`;
    const inputs = EDGES.map((edge, place) => {
      const label = document.createElement("label");
      const input = document.createElement("input");
      Object.assign(input, { type: "number", min: "0", step: "1", required: true, value: String(box[place]) });
      input.max = String(place % 2 ? limits().rows : limits().columns);
      input.addEventListener("input", () => { box[place] = Math.round(Number(input.value)); paint(); });
      label.append(edge, input);
      return label;
    });
    const remove = document.createElement("button");
    Object.assign(remove, { type: "button", className: "button", textContent: "Remove" });
    remove.setAttribute("aria-label", `Remove box ${index + 1}`);
    remove.addEventListener("click", () => { boxes.splice(index, 1); show(); document.getElementById("region-add").focus(); });
    row.append(title, ...inputs, remove);
    return row;
  };

  const show = () => {
    document.getElementById("region-boxes")?.replaceChildren(...boxes.map(line));
    const add = document.getElementById("region-add");
    if (add) add.disabled = full();
    paint();
  };

  const at = (event) => {
    const place = board().getBoundingClientRect();
    const { columns, rows } = limits();
    const within = (value, most) => Math.min(Math.max(value, 0), most);
    return [within(((event.clientX - place.left) / place.width) * columns, columns),
      within(((event.clientY - place.top) / place.height) * rows, rows)];
  };

  document.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !event.target.closest("#region-overlay")) return;
    if (full() || !document.getElementById("region-boxes")) return;
    event.preventDefault();
    const [x, y] = at(event);
    drag = { x, y, box: [x, y, x, y] };
    board().setPointerCapture(event.pointerId);
  });
  document.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const [x, y] = at(event);
    drag.box = [Math.floor(Math.min(x, drag.x)), Math.floor(Math.min(y, drag.y)),
      Math.ceil(Math.max(x, drag.x)), Math.ceil(Math.max(y, drag.y))];
    paint();
  });
  const drop = (kept) => {
    if (!drag) return;
    const { box } = drag;
    drag = null;
    if (kept && box[2] - box[0] >= SMALLEST && box[3] - box[1] >= SMALLEST) boxes.push(box);
    show();
  };
  document.addEventListener("pointerup", () => drop(true));
  document.addEventListener("pointercancel", () => drop(false));

  document.addEventListener("click", (event) => {
    if (event.target.id !== "region-add" || full()) return;
    const { columns, rows } = limits();
    boxes.push([0, 0, columns, Math.max(1, Math.round(rows / 10))]);
    show();
    document.querySelector("#region-boxes fieldset:last-child input").focus();
  });

  const turn = (number) => {
    document.getElementById("region-frame-number").textContent = number;
    editor().querySelector(".board img").src = `${editor().dataset.picture}?frame=${number}`;
  };
  document.addEventListener("input", (event) => {
    if (event.target.id === "region-frame") document.getElementById("region-frame-number").textContent = event.target.value;
  });
  document.addEventListener("change", (event) => {
    if (event.target.id === "region-frame") turn(event.target.value);
  });
  const failed = (event, hidden) => {
    if (event.target.closest?.(".board")) document.getElementById("region-failed").hidden = hidden;
  };
  document.addEventListener("error", (event) => failed(event, false), true);
  document.addEventListener("load", (event) => failed(event, true), true);

  /* Saved: the form is reset, and the boxes become part of what is in force. */
  document.addEventListener("reset", (event) => {
    if (!event.target.closest("#region-editor")) return;
    boxes = [];
    setTimeout(show);
  });

  /* The page was refreshed around the drawing: put it back. */
  new MutationObserver(() => {
    if (!editor() || editor() === seen) return;
    seen = editor();
    show();
    const image = seen.querySelector(".board img");
    if (image.complete && !image.naturalWidth) document.getElementById("region-failed").hidden = false;
  }).observe(document, { childList: true, subtree: true });
})();
