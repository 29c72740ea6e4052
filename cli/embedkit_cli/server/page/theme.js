// Before the first paint, hence no module: a theme that was chosen earlier, else the system's.
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("embedkit-theme");
  } catch {
    // Storage may be forbidden: the system's theme then.
  }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
