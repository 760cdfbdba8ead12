// A figure as large as the window, until it is clicked or Escape is pressed.
document.querySelectorAll("figure button").forEach((button) => {
  button.addEventListener("click", () => {
    const dialog = make("dialog", "large");
    const figure = make("figure");
    figure.append(...[...button.children].map((image) => image.cloneNode()));
    dialog.append(figure);
    dialog.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
  });
});
