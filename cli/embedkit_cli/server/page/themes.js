// Light, dark, or as the system has it.

import { byId } from "./dom.js";

const ORDER = ["system", "light", "dark"];
const SIGNS = { system: "◐", light: "☀", dark: "☾" };

export function startTheme(changed) {
  const root = document.documentElement;
  const button = byId("theme");
  const chosen = () => root.dataset.theme ?? "system";
  const tell = () => {
    button.textContent = SIGNS[chosen()];
    button.setAttribute("aria-label", `Theme: ${chosen()}`);
    button.title = `Theme: ${chosen()}`;
    changed();
  };
  button.addEventListener("click", () => {
    const next = ORDER[(ORDER.indexOf(chosen()) + 1) % ORDER.length];
    if (next === "system") delete root.dataset.theme;
    else root.dataset.theme = next;
    try {
      localStorage.setItem("embedkit-theme", next);
    } catch {
      // Storage may be forbidden: the choice lasts as long as the page.
    }
    tell();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
  tell();
}
