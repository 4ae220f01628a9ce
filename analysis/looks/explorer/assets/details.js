// Words and numbers about what is chosen in one detector; everything that the picture shows can be read here.

const STRONGEST = 10;  // points in the table

class Details {
  // `on` has choose(choice), layer(number) and hover(point or null).
  constructor(side, titled, on) {
    Object.assign(this, { side, titled, on });
    this.element = html("article", { class: "card details", "aria-label": side.title });
  }

  show(choice, layer, place, scene) {
    const focused = this.element.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    const title = this.titled ? html("p", { class: "side-title" }, this.side.title) : null;
    const parts = choice ? this.about(choice, layer, place, scene) : [this.hint()];
    this.element.replaceChildren(...[title, ...parts].filter(Boolean));
    if (focused) this.element.querySelector(`[data-key="${focused}"]`)?.focus({ preventScroll: true });
  }

  hint() {
    const tokens = this.side.encoder ? ", or anywhere else to see the encoder token there" : "";
    return html("p", { class: "hint" }, `Click a box to see where its query looked${tokens}.`);
  }

  about(choice, layer, place, scene) {
    const query = choice.kind === "query";
    return [
      query ? this.queryTitle(choice.index) : this.tokenTitle(choice.index),
      this.where(choice, layer),
      this.layers(choice, layer),
      place && this.candidates(choice, place),
      this.levels(choice, layer),
      this.points(scene),
    ];
  }

  queryTitle(query) {
    const others = this.side.decoder.labels[query].slice(1).map((label, i) =>
      `${this.side.names[label]} ${this.side.decoder.label_scores.at(query * this.side.decoder.label_scores.shape[1] + i + 1).toFixed(2)}`);
    return html("header", {},
      html("h2", {}, chipOf(this.side, query), nameOf(this.side, query), html("span", { class: "score" }, lastScore(this.side, query).toFixed(2))),
      html("p", { class: "quiet" }, `query ${query}${others.length ? `; else ${others.join(", ")}` : ""}`));
  }

  tokenTitle(index) {
    const { tokens, token_levels: levels, total } = this.side.encoder, [width, height] = this.side.cells[levels[index]];
    const some = tokens.length < total ? `; the page has ${tokens.length} of ${total} tokens, and this is the nearest` : "";
    return html("header", {},
      html("h2", {}, `Token of level ${levels[index]}`),
      html("p", { class: "quiet" }, `token ${tokens[index]}, a cell of ${width.toFixed(1)} × ${height.toFixed(1)} px${some}`));
  }

  where(choice, layer) {
    const [x, y] = referenceOf(this.side, choice, layer), box = boxOf(this.side, choice, layer).map((v) => v.toFixed(1));
    return html("dl", { class: "where" },
      html("div", {}, html("dt", {}, "reference"), html("dd", { class: "reference" }, `${x.toFixed(1)}, ${y.toFixed(1)} px`)),
      html("div", {}, html("dt", {}, choice.kind === "query" ? "box" : "cell"), html("dd", { class: "corners" }, `${box[0]}, ${box[1]} to ${box[2]}, ${box[3]} px`)));
  }

  layers(choice, current) {
    const { side } = this, query = choice.kind === "query", count = layerCount(stackOf(side, choice));
    const rows = Array.from({ length: count }, (_, layer) => {
      const points = pointsOf(side, choice, layer), [x, y] = referenceOf(side, choice, layer), heads = stackOf(side, choice).heads;
      const reach = points.reduce((sum, point) => sum + point.weight * Math.hypot(point.x - x, point.y - y), 0) / heads;
      const cells = query ? [bar(scoreOf(side, choice.index, layer), scoreOf(side, choice.index, layer).toFixed(2)),
        overlapOf(boxOf(side, choice, layer), lastBox(side, choice.index)).toFixed(2)] : [];
      return html("tr", { class: layer === current && "current" },
        html("th", { scope: "row" }, html("button", { type: "button", "data-key": `layer-${layer}`, "aria-current": layer === current && "true",
          "aria-label": `layer ${layer}`, onclick: () => this.on.layer(layer) }, String(layer))),
        ...[...cells, `${reach.toFixed(0)} px`].map((cell) => html("td", {}, cell)));
    });
    const heads = ["layer", ...(query ? ["score", "IoU with last"] : []), "mean reach"];
    return html("table", { class: "layers" }, html("caption", {}, "Layer by layer"),
      html("thead", {}, html("tr", {}, ...heads.map((head) => html("th", { scope: "col" }, head)))), html("tbody", {}, ...rows));
  }

  candidates(choice, place) {
    const { queries, total, inside } = candidatesAt(this.side, place), [x, y] = place.map((v) => v.toFixed(0));
    const shown = queries.map((query) => html("li", {}, html("button", {
      type: "button", "data-key": `query-${query}`, "data-query": query,
      "aria-pressed": String(choice.kind === "query" && choice.index === query), onclick: () => this.on.choose({ kind: "query", index: query }),
    }, html("span", {}, `${nameOf(this.side, query)} `, html("small", {}, `query ${query}`)), bar(lastScore(this.side, query), lastScore(this.side, query).toFixed(2)))));
    const levels = [...new Set(this.side.encoder?.token_levels ?? [])];
    const tokens = levels.map((level) => {
      const index = tokenAt(this.side, place, level);
      return html("button", { type: "button", "data-key": `token-${level}`, "aria-pressed": String(choice.kind === "token" && choice.index === index),
        "aria-label": `encoder token of level ${level}`, onclick: () => this.on.choose({ kind: "token", index }) }, levelMark(level), String(level));
    });
    const more = total > queries.length ? `, the best ${queries.length} of ${total}` : "";
    return html("section", { class: "candidates", "aria-label": "What the place could be" },
      html("h3", {}, inside ? `Queries at ${x}, ${y}${more}` : `No box at ${x}, ${y}; nearest queries`),
      html("ol", {}, ...shown),
      tokens.length ? html("div", { class: "tokens", role: "group", "aria-label": "Encoder tokens at the place" }, html("span", {}, "Tokens of level"), ...tokens) : null);
  }

  levels(choice, layer) {
    const points = pointsOf(this.side, choice, layer), { levels, heads } = stackOf(this.side, choice);
    const rows = [...new Set(levels)].map((level) => {
      const share = points.reduce((sum, point) => sum + (point.level === level ? point.weight : 0), 0) / heads;
      return html("li", {}, levelMark(level), html("span", {}, `level ${level}`), bar(share, `${(100 * share).toFixed(0)} %`));
    });
    return html("section", { class: "shares" }, html("h3", {}, "Weight by level"), html("ul", {}, ...rows));
  }

  points(scene) {
    const seen = scene.points.filter((point) => point.size > 0).sort((a, b) => b.weight - a.weight);
    const rows = seen.slice(0, STRONGEST).map((point) => html("tr", {
      onpointerenter: () => this.on.hover(point), onpointerleave: () => this.on.hover(null),
    }, html("th", { scope: "row" }, html("button", {
      type: "button", "data-key": `point-${point.id}`, onfocus: () => this.on.hover(point), onblur: () => this.on.hover(null), onclick: () => this.on.hover(point),
    }, point.texts.weight)), ...[point.head, point.level, point.k, point.texts.dx, point.texts.dy].map((cell) => html("td", {}, String(cell)))));
    const heads = ["weight", "head", "level", "k", "Δx px", "Δy px"];
    return html("table", { class: "strongest" },
      html("caption", {}, `Strongest ${rows.length} of ${seen.length} points`),
      html("thead", {}, html("tr", {}, ...heads.map((head) => html("th", { scope: "col" }, head)))), html("tbody", {}, ...rows));
  }
}

function bar(share, text) {
  const fill = html("i");
  fill.style.width = `${(100 * Math.min(Math.max(share, 0), 1)).toFixed(1)}%`;
  return html("span", { class: "bar" }, html("span", { "aria-hidden": "true" }, fill), html("b", {}, text));
}
