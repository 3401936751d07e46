// The buttons that move the view, and the number that says how large the picture is.

const byId = (id) => document.getElementById(id);

export function listenToZoom({ view }) {
  byId("zoom-in").addEventListener("click", () => view.step(1));
  byId("zoom-out").addEventListener("click", () => view.step(-1));
  byId("zoom-fit").addEventListener("click", () => view.fit());
  byId("zoom-level").addEventListener("click", () => view.actualSize());
  view.addEventListener("change", () => {
    const percent = view.percent < 10 ? view.percent.toFixed(1) : Math.round(view.percent);
    byId("zoom-level").textContent = `${percent} %`;
    byId("zoom-level").setAttribute("aria-label", `Zoom ${percent} %, show at 100 %`);
  });
}
