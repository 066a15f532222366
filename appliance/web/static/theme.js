/* Runs before the first paint: a person's choice of light or dark, else the machine's. */
"use strict";
(() => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    const chosen = localStorage.getItem("cloister-theme");
    document.documentElement.dataset.theme = chosen || (dark.matches ? "dark" : "light");
  };
  window.cloisterToggleTheme = () => {
    const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    localStorage.setItem("cloister-theme", next);
    apply();
  };
  dark.addEventListener("change", apply);
  apply();
})();
