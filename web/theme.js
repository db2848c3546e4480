// Sets the chosen theme before the first paint. The theme is all that is ever stored in the browser.
"use strict";
(() => {
  try {
    const chosen = localStorage.getItem("providerd-theme");
    if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  } catch {
    // Storage may be switched off: the system's theme it is.
  }
})();
