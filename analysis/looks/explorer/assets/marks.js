// Elements, colours of weights and the mark of each level, as in the PNGs of `visualize`.

const SVG = "http://www.w3.org/2000/svg";

function svg(name, attributes = {}, ...children) {
  return furnish(document.createElementNS(SVG, name), attributes, children);
}

function html(name, attributes = {}, ...children) {
  return furnish(document.createElement(name), attributes, children);
}

// Texts become text nodes, so nothing that a file or class is called can become markup.
function furnish(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Around (0, 0), of about equal area; level 0 is a circle.
const MARKS = [
  "M-1,0A1,1 0 1,1 1,0A1,1 0 1,1 -1,0Z",
  "M-.89,-.89H.89V.89H-.89Z",
  "M0,-1.25L1.25,0L0,1.25L-1.25,0Z",
  "M-1.2,-.85H1.2L0,1.25Z",
  "M-1.2,.85H1.2L0,-1.25Z",
  "M-.45,-1.2H.45V-.45H1.2V.45H.45V1.2H-.45V.45H-1.2V-.45H-.45Z",
  "M-1.15,-.6L-.6,-1.15L0,-.55L.6,-1.15L1.15,-.6L.55,0L1.15,.6L.6,1.15L0,.55L-.6,1.15L-1.15,.6L-.55,0Z",
  "M.6,-1.05L1.2,0L.6,1.05H-.6L-1.2,0L-.6,-1.05Z",
];

function markOf(level) {
  return MARKS[level % MARKS.length];
}

function levelMark(level) {
  return svg("svg", { viewBox: "-1.6 -1.6 3.2 3.2", class: "mark", "aria-hidden": "true" }, svg("path", { d: markOf(level) }));
}

function colourOf(palette, share) {
  return palette[Math.round(Math.min(Math.max(share, 0), 1) * (palette.length - 1))];
}

// In pixels of the screen; the area grows with the weight, and even the weakest can be seen.
function radiusOf(share) {
  return 1.6 + 6.4 * Math.sqrt(Math.max(share, 0));
}

// Told apart by people with any colour vision (Okabe and Ito), on light and on dark pictures.
const CLASS_COLOURS = ["#56b4e9", "#e69f00", "#2fc596", "#f0e442", "#ff7f50", "#e08fbd", "#8fb7ff", "#d0d0d0"];

function classColour(side, query) {
  const order = Object.keys(side.names).map(Number).sort((a, b) => a - b);
  return CLASS_COLOURS[order.indexOf(side.decoder.labels[query][0]) % CLASS_COLOURS.length];
}

function chipOf(side, query) {
  const chip = html("i", { class: "chip" });
  chip.style.background = classColour(side, query);
  return chip;
}
