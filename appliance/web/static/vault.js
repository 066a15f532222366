/* A question whose answer stays on this page alone: asked once more, sent by POST, shown, taken away again. */
"use strict";
(() => {
  const STAYS_MS = 120_000;
  const NAMES = { patient_id: "Patient ID", issuer: "Issuer", project: "Project" };
  const place = () => document.getElementById("told");
  let hide = 0;

  const draw = (name, content, className) => {
    const element = document.createElement(name);
    if (className) element.className = className;
    element.append(...[content].flat());
    return element;
  };

  const clear = () => {
    clearTimeout(hide);
    place()?.replaceChildren();
  };

  const show = (found) => {
    const identities = found.map((one) => draw("dl", Object.entries(NAMES).flatMap(
      ([key, name]) => [draw("dt", name), draw("dd", one[key] || "\u2013")]), "facts"));
    const button = draw("button", "Hide", "button");
    button.type = "button";
    button.addEventListener("click", clear);
    const note = draw("p", "Shown this once: gone after two minutes, with Hide, or when you leave the page.", "muted");
    place().replaceChildren(draw("div", [...identities, note, button], "notice ok"));
    hide = setTimeout(clear, STAYS_MS);
  };

  const refuse = (message) => {
    const box = draw("div", message, "notice bad");
    box.setAttribute("role", "alert");
    place().replaceChildren(box);
  };

  const ask = async (form) => {
    clear();
    const body = {};
    for (const [name, value] of new FormData(form)) body[name.replace(/^field-/, "")] = value;
    const answer = await fetch(form.dataset.tell, {
      method: "POST", cache: "no-store", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
    }).catch(() => null);
    const said = await answer?.json().catch(() => null);
    if (!answer?.ok || !said?.found) return refuse(said?.detail || "This did not work.");
    form.reset();
    show(said.found);
  };

  document.addEventListener("submit", (event) => {
    const dialog = document.getElementById("tell");
    if (event.target.dataset.tell) {
      event.preventDefault();
      dialog.showModal();
    } else if (event.target.id === "tell-form") {
      event.preventDefault();
      dialog.close();
      ask(document.querySelector("form[data-tell]"));
    }
  });
  window.addEventListener("pagehide", clear);
})();
