// What went wrong, in the server's own sentence, where it belongs.

import { byId, h } from "./dom.js";
import { setKey } from "./api.js";

let timer = 0;

export function clearProblems() {
  clearInterval(timer);
  byId("notice").replaceChildren();
  for (const problem of document.querySelectorAll(".problem")) problem.hidden = true;
  for (const field of document.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
}

export function fieldProblem(id, message) {
  const problem = byId(`${id}-problem`);
  problem.textContent = message;
  problem.hidden = false;
  const field = byId(id);
  if (!field) return;
  field.setAttribute("aria-invalid", "true");
  const folded = field.closest("details");
  if (folded) folded.open = true;
  if (document.activeElement === document.body || folded) field.focus();
}

export function notice(message, again = null) {
  byId("notice").replaceChildren(
    h("p", {}, message, again && h("button", { type: "button", onclick: again }, "Try again")),
  );
}

export function countDown(message, seconds, again) {
  let left = Math.max(1, Math.ceil(seconds));
  const shown = h("span", { "aria-hidden": "true" });
  const tell = () => { shown.textContent = ` · asking again in ${left} s`; };
  notice(message, () => { clearInterval(timer); again(); });
  byId("notice").querySelector("p").insertBefore(shown, byId("notice").querySelector("button"));
  tell();
  clearInterval(timer);
  timer = setInterval(() => {
    left -= 1;
    if (left > 0) tell();
    else {
      clearInterval(timer);
      again();
    }
  }, 1000);
}

export function askForKey(message, then) {
  const dialog = byId("key-dialog");
  const problem = byId("key-problem");
  problem.textContent = message;
  problem.hidden = !message;
  byId("key").value = "";
  byId("key-form").onsubmit = () => {
    setKey(byId("key").value.trim());
    then();
  };
  dialog.oncancel = () => notice("This server asks for a key, and shows nothing without one.", then);
  if (!dialog.open) dialog.showModal();
}
