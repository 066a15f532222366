/* One set of listeners for the whole panel: buttons and forms become one event, which the server checks. */
"use strict";
(() => {
  const busy = new Map();
  let number = 0;

  const send = (source, action, fields) => {
    number += 1;
    busy.set(number, source);
    source?.setAttribute("aria-busy", "true");
    emitEvent("panel_action", { action, fields, number });
  };

  const fieldsOf = (element) => {
    const fields = {};
    for (const [key, value] of Object.entries(element.dataset)) {
      if (key.startsWith("field")) fields[key.slice(5).replace(/[A-Z]/g, (c, i) => (i ? "_" : "") + c.toLowerCase())] = value;
    }
    return fields;
  };

  const confirmThen = (button) => {
    const dialog = document.getElementById("confirm");
    dialog.querySelector("[data-slot=question]").textContent = button.dataset.confirm;
    const reason = dialog.querySelector("[data-slot=reason]");
    reason.hidden = !button.dataset.reason;
    reason.querySelector("span").textContent = button.dataset.reason || "";
    reason.querySelector("input").value = "";
    reason.querySelector("input").required = Boolean(button.dataset.reason);
    const submit = dialog.querySelector("[type=submit]");
    submit.textContent = button.textContent;
    submit.className = button.classList.contains("danger") ? "button danger" : "button primary";
    dialog.onsubmitted = () => {
      const fields = fieldsOf(button);
      if (button.dataset.reason) fields.reason = reason.querySelector("input").value;
      send(button, button.dataset.action, fields);
    };
    dialog.showModal();
  };

  document.addEventListener("click", (event) => {
    const target = event.target.closest("[data-action]:not(form), [data-opens], [data-closes], #theme-button, #menu-button");
    if (!target) return;
    if (target.id === "theme-button") return cloisterToggleTheme();
    if (target.id === "menu-button") {
      const open = document.body.classList.toggle("menu-open");
      target.setAttribute("aria-expanded", String(open));
      return;
    }
    if (target.dataset.opens) return document.getElementById(target.dataset.opens).showModal();
    if (target.dataset.closes) return document.getElementById(target.dataset.closes).close();
    if (target.getAttribute("aria-busy") === "true") return;
    if (target.dataset.confirm) return confirmThen(target);
    send(target, target.dataset.action, fieldsOf(target));
  });

  /* A file goes as the body of a request of its own; what the server says stays below the form. */
  const upload = async (form) => {
    const output = form.querySelector("output");
    const query = new URLSearchParams();
    for (const [name, value] of new FormData(form)) {
      if (typeof value === "string" && value) query.set(name.replace(/^field-/, ""), value);
    }
    const file = form.querySelector("[type=file]").files[0];
    output.textContent = "Reading\u2026";
    const answer = await fetch(`${form.dataset.upload}?${query}`, { method: "POST", body: file }).catch(() => null);
    const said = await answer?.json().catch(() => null);
    output.textContent = said?.message || said?.detail || "This did not work.";
  };

  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.id === "confirm-form") {
      event.preventDefault();
      const dialog = document.getElementById("confirm");
      dialog.close();
      dialog.onsubmitted();
      return;
    }
    if (form.dataset.upload) {
      event.preventDefault();
      return upload(form);
    }
    if (!form.dataset.action) return;
    event.preventDefault();
    const fields = {};
    for (const [name, value] of new FormData(form)) {
      const key = name.replace(/^field-/, "");
      fields[key] = key in fields ? `${fields[key]},${value}` : value;
    }
    const other = event.submitter?.dataset.submit;
    send(other ? event.submitter : form, other || form.dataset.action, fields);
  });

  const toast = (ok, message) => {
    const box = document.createElement("div");
    box.textContent = message;
    if (!ok) box.className = "bad";
    document.getElementById("toast").append(box);
    setTimeout(() => box.remove(), ok ? 6000 : 12000);
  };

  window.cloisterDone = (answered, ok, message) => {
    const source = busy.get(answered);
    busy.delete(answered);
    source?.removeAttribute("aria-busy");
    if (ok && source?.tagName === "FORM") {
      source.reset();
      source.closest("dialog")?.close();
    }
    toast(ok, message);
  };

  /* A refreshed section keeps the keyboard's place and what was unfolded. */
  let focused = "";
  const unfolded = new Set();
  document.addEventListener("focusin", (event) => { focused = event.target.id || ""; });
  document.addEventListener("toggle", (event) => {
    if (!event.target.id || event.target.tagName !== "DETAILS") return;
    if (event.target.open) unfolded.add(event.target.id);
    else unfolded.delete(event.target.id);
  }, true);
  new MutationObserver(() => {
    if (focused && document.activeElement === document.body) document.getElementById(focused)?.focus({ preventScroll: true });
    for (const id of unfolded) document.getElementById(id)?.setAttribute("open", "");
  }).observe(document, { childList: true, subtree: true });

  /* The socket was closed: find out whether the session ended. */
  const watch = () => {
    if (!window.socket) return setTimeout(watch, 100);
    const check = async () => {
      const answer = await fetch("/session", { headers: { accept: "application/json" } }).catch(() => null);
      if (answer && answer.status === 401) window.location.assign("/sign-in?ended=1");
    };
    window.socket.on("disconnect", check);
    window.socket.on("connect_error", check);
  };
  watch();
})();
