// Theme: the system's, unless the button chose another. `onTheme` is called when it changes.
const systemDark = matchMedia("(prefers-color-scheme: dark)");
const themeListeners = [];

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : systemDark.matches;
}

function onTheme(listener) {
  themeListeners.push(listener);
}

function themeChanged() {
  themeListeners.forEach((listener) => listener());
}

systemDark.addEventListener("change", themeChanged);
document.getElementById("theme")?.addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  themeChanged();
});
