// The keyboard. Keys of a single letter can be switched off, for people who dictate.

function listenToKeys({ step, clear, help, letters }) {
  const allowed = document.getElementById("letters");
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.getElementById("help").open) return;
    const typing = event.target.closest?.("input, select, textarea");
    if (event.key === "Escape") clear();
    else if (event.key === "?" && allowed.checked) help();
    else if (typing) return;  // arrows move sliders and radio buttons themselves
    else if (event.key === "ArrowRight") step(1);
    else if (event.key === "ArrowLeft") step(-1);
    else if (allowed.checked && event.key.toLowerCase() in letters) letters[event.key.toLowerCase()](event.shiftKey ? -1 : 1);
    else return;
    event.preventDefault();
  });
}

function listenToButtons() {
  const help = document.getElementById("help");
  document.getElementById("help-open").addEventListener("click", () => help.showModal());
  document.getElementById("theme").addEventListener("click", () => {
    const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const now = root.dataset.theme ?? (dark ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
  });
}
