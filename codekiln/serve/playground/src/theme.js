// Dark and light: as the system prefers, until the user chooses.

const STORED = "codekiln.theme";

/** Applies the stored choice. The button switches to the other theme. */
export function connectTheme(button) {
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches);
  const show = () => button.setAttribute("aria-pressed", String(isDark()));

  const stored = localStorage.getItem(STORED);
  if (stored) root.dataset.theme = stored;
  show();
  prefersDark.addEventListener("change", show);
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    localStorage.setItem(STORED, root.dataset.theme);
    show();
  });
}
