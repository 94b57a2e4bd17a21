// Draws the figures when they come into view, in the colours of the page's theme. Nothing is asked of any network.
(() => {
  const specs = JSON.parse(document.getElementById("figures").textContent);
  const drawn = new Map();
  const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const axis = () => ({
    gridcolor: ink("--grid"), linecolor: ink("--line"), zerolinecolor: ink("--grid"), tickfont: { color: ink("--soft") },
    automargin: true, title: { standoff: 12 },
  });
  const merged = (base, own) => {
    const result = { ...base };
    for (const [key, value] of Object.entries(own || {})) {
      const both = value && typeof value === "object" && !Array.isArray(value) && typeof base[key] === "object" && base[key];
      result[key] = both ? merged(base[key], value) : value;
    }
    return result;
  };
  const layout = (own) => {
    const base = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true, hovermode: "closest",
      font: { family: "system-ui, sans-serif", size: 12.5, color: ink("--ink") }, margin: { l: 62, r: 18, t: 14, b: 52 },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { color: ink("--soft") } },
      hoverlabel: { bgcolor: ink("--card"), bordercolor: ink("--line"), font: { color: ink("--ink") } },
      xaxis: axis(), yaxis: axis(),
      modebar: { bgcolor: "rgba(0,0,0,0)", color: ink("--faint"), activecolor: ink("--accent") },
    };
    const full = merged(base, own);
    for (const note of full.annotations || []) {
      note.font = { ...note.font, color: ink("--ink") };
      note.bgcolor = ink("--ground");
      note.opacity = 0.85;
    }
    return full;
  };
  const traces = (data) => data.map((trace) => (trace.texttemplate ? { ...trace, textfont: { color: ink("--ink") } } : trace));
  const config = {
    responsive: true, displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
  };
  const draw = (place) => {
    const spec = specs[place.dataset.figure];
    if (!spec || drawn.has(place)) return;
    drawn.set(place, spec);
    Plotly.newPlot(place, traces(spec.data), layout(spec.layout), config);
  };
  const again = () => drawn.forEach((spec, place) => Plotly.react(place, traces(spec.data), layout(spec.layout), config));
  const unpack = async (text) => {
    const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  };
  const start = async () => {
    const script = document.createElement("script");
    script.textContent = await unpack(document.getElementById("plotly").textContent);
    document.head.append(script);
    const places = [...document.querySelectorAll("[data-figure]")];
    const seen = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        seen.unobserve(entry.target);
        draw(entry.target);
      }
    }, { rootMargin: "500px" });
    for (const place of places) seen.observe(place);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
    addEventListener("beforeprint", () => {
      for (const folded of document.querySelectorAll("details.print")) folded.open = true;
      for (const place of places) if (place.offsetParent) draw(place);
    });
  };
  start().catch(() => document.body.classList.add("failed"));
})();
