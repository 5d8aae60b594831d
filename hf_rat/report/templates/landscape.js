"use strict";
// Draws each surface when it comes into view; one that is turned turns the others beside it.
(() => {
  const boxes = [...document.querySelectorAll(".surface")];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const webgl = document.createElement("canvas").getContext("webgl") !== null;
  const mostDrawn = 8; // a browser keeps about 16 pictures in WebGL
  const camera = { eye: { x: 1.6, y: 1.6, z: 1.1 }, center: { x: 0, y: 0, z: -0.15 } };
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const layout = () => {
    const axis = (title) => ({
      title: { text: title }, color: style("--soft"), gridcolor: style("--edge"), zeroline: false, showbackground: false,
    });
    const bare = { margin: { l: 0, r: 0, t: 0, b: 0 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)" };
    const font = { family: "system-ui, sans-serif", size: 11, color: style("--soft") };
    return webgl
      ? { ...bare, font, scene: { xaxis: axis("x"), yaxis: axis("y"), zaxis: axis("loss"), aspectmode: "cube", camera } }
      : { ...bare, font, margin: { l: 40, r: 10, t: 10, b: 40 }, xaxis: axis("x"), yaxis: axis("y") };
  };
  const isDrawn = (box) => box.classList.contains("ready");
  const draw = async (box) => {
    if (isDrawn(box)) return;
    const { x, y, z, range, log } = JSON.parse(box.querySelector("script").textContent);
    const tone = (height) => (log && height !== null ? Math.log10(height) : height);
    const [low, high] = range.map(tone);
    const tones = z.map((row) => row.map(tone));
    const look = { x, y, colorscale: "Viridis", showscale: false };
    const trace = webgl
      ? { ...look, z, type: "surface", surfacecolor: tones, cmin: low, cmax: high }
      : { ...look, z: tones, type: "contour", zmin: low, zmax: high, ncontours: 24 };
    const wanted = layout();
    if (webgl) {
      trace.contours = { z: { show: !log, width: 1, color: "#0006" } };
      Object.assign(wanted.scene.zaxis, { range: [low, high], type: log ? "log" : "linear" });
    }
    const plot = box.querySelector(".drawing");
    await Plotly.newPlot(plot, [trace], wanted, { displaylogo: false, responsive: true, displayModeBar: false });
    plot.on("plotly_relayout", (change) => {
      const camera = change["scene.camera"];
      if (!camera || change.together) return;
      for (const other of box.parentElement.querySelectorAll(".surface.ready")) {
        if (other !== box) Plotly.relayout(other.querySelector(".drawing"), { "scene.camera": camera, together: true });
      }
    });
    box.classList.add("ready");
  };
  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) draw(target);
      else if (isDrawn(target) && boxes.length > mostDrawn) {
        Plotly.purge(target.querySelector(".drawing"));
        target.classList.remove("ready");
      }
    }
  }, { rootMargin: "200px" });
  boxes.forEach((box) => seen.observe(box));
  dark.addEventListener("change", () => {
    for (const box of boxes.filter(isDrawn)) {
      Plotly.purge(box.querySelector(".drawing"));
      box.classList.remove("ready");
      draw(box);
    }
  });
})();
