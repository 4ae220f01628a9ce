// Below a picture: the colours of weights while something is chosen, else those of the classes.

class Legend {
  constructor(side, palette) {
    const stops = palette.map((colour, i) => svg("rect", { x: i, width: 1, height: 1, fill: colour }));
    const scale = svg("svg", { viewBox: `0 0 ${palette.length} 1`, preserveAspectRatio: "none", "shape-rendering": "crispEdges", "aria-hidden": "true" }, ...stops);
    this.side = side;
    this.most = html("span");
    this.levels = html("span", { class: "levels" });
    this.weights = html("div", { class: "weights" }, html("span", {}, "weight 0"), scale, this.most, this.levels);
    this.classes = html("ul", { class: "classes", "aria-label": "Classes of the boxes" });
    this.element = html("div", { class: "legend" }, this.weights, this.classes);
  }

  show(choice, threshold) {
    this.weights.hidden = !choice;
    this.classes.hidden = Boolean(choice);
    if (choice) {
      this.most.textContent = strongestOf(this.side, choice).toFixed(4);
      const levels = [...new Set(stackOf(this.side, choice).levels)];
      this.levels.replaceChildren(...levels.map((level) => html("span", {}, levelMark(level), `level ${level}`)));
    } else this.classes.replaceChildren(...classesOf(this.side, threshold));
  }
}

// The classes of the boxes that are shown, with how many there are.
function classesOf(side, threshold) {
  const counts = new Map();
  for (const query of shownQueries(side, threshold)) {
    const label = side.decoder.labels[query][0];
    counts.set(label, [query, (counts.get(label)?.[1] ?? 0) + 1]);
  }
  return [...counts.values()].map(([query, count]) => html("li", {}, chipOf(side, query), `${nameOf(side, query)} ${count}`));
}
