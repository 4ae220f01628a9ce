// The picture of one detector: boxes to choose, and what the choice sampled.

const MARGIN = 0.045;  // share of the picture around it, because points may lie outside, where they read zero
const NEAR = 10;  // pixels of the screen between a pointer and the point that it means

class Stage {
  // `on` has pick(place), choose(query), and hover(point or null).
  constructor(side, picture, palette, on) {
    Object.assign(this, { side, picture, palette, on });
    this.drawn = null;
    this.pointed = false;  // whether the pointer shows a point; a table's row may show one too
    this.stop = () => {};
    this.image = svg("image", { href: picture.url, width: picture.width, height: picture.height, preserveAspectRatio: "none" });
    this.veil = svg("rect", { class: "veil", width: picture.width, height: picture.height });
    this.boxes = svg("g", { class: "boxes" });
    this.trail = svg("g", { class: "trail" });
    this.frame = svg("g", { class: "frame" }, svg("rect", { class: "halo" }), svg("rect", { class: "line" }));
    this.ray = svg("line", { class: "ray" });
    this.points = svg("g", { class: "points" });
    this.cross = svg("g", { class: "cross" }, svg("path", { class: "halo", d: "M-7,0H7M0,-7V7" }), svg("path", { d: "M-7,0H7M0,-7V7" }));
    this.tag = svg("g", { class: "tag" }, svg("rect", { rx: 3 }), svg("text"));
    this.svg = svg("svg", { class: "stage", role: "group" },
      this.image, this.veil, this.boxes, this.trail, this.frame, this.ray, this.points, this.cross, this.tag);
    this.tip = html("div", { class: "tip", hidden: true, role: "tooltip" });
    this.element = html("div", { class: "canvas" }, this.svg, this.tip);
    this.view = this.whole();
    this.listen();
  }

  whole() {
    const { width, height } = this.picture, margin = MARGIN * Math.max(width, height);
    return [-margin, -margin, width + 2 * margin, height + 2 * margin];
  }

  // Pixels of the picture in a pixel of the screen.
  get scale() {
    return this.view[2] / (this.svg.clientWidth || this.view[2]);
  }

  listen() {
    this.svg.addEventListener("click", (event) => {
      const query = event.target.closest?.("[data-query]")?.dataset.query;
      if (event.detail === 0 && query !== undefined) return this.on.choose(Number(query));  // of a screen reader
      const place = this.placeOf(event), point = this.nearest(place);
      if (event.pointerType === "touch" && point) return this.on.hover(point);  // fingers cannot hover
      this.on.pick(place);
    });
    this.svg.addEventListener("mousedown", (event) => {
      event.preventDefault();  // a pointer gives no box the focus, which would name it
      document.activeElement?.blur();  // so that arrows step through layers and move no switch
    });
    this.svg.addEventListener("pointermove", (event) => {
      if (event.pointerType === "touch" || (!event.movementX && !event.movementY)) return;  // the page moved, not the pointer
      const place = this.placeOf(event), point = this.nearest(place);
      if (point || this.pointed) this.on.hover(point);
      this.pointed = Boolean(point);
      this.name(point || this.picks !== "box" ? null : boxAt(this.side, place, this.threshold));
    });
    this.svg.addEventListener("pointerleave", () => {
      if (this.pointed) this.on.hover(null);
      this.pointed = false;
      this.name(null);
    });
    this.svg.addEventListener("keydown", (event) => {
      const query = event.target.dataset.query;
      if (query === undefined || (event.key !== "Enter" && event.key !== " ")) return;
      event.preventDefault();
      this.on.choose(Number(query));
    });
    this.svg.addEventListener("focusin", (event) => this.name(Number(event.target.dataset.query ?? -1)));
    this.svg.addEventListener("focusout", () => this.name(null));
    new ResizeObserver(() => this.drawn && this.draw(this.drawn)).observe(this.svg);
  }

  placeOf(event) {
    const { left, top } = this.svg.getBoundingClientRect();
    return [this.view[0] + (event.clientX - left) * this.scale, this.view[1] + (event.clientY - top) * this.scale];
  }

  nearest([x, y]) {
    let best = null, least = NEAR * this.scale;
    for (const point of this.drawn?.points ?? []) {
      const distance = Math.hypot(point.x - x, point.y - y) - point.size * this.scale;  // from its edge
      if (point.size > 0 && distance < least) [best, least] = [point, distance];
    }
    return best;
  }

  // The boxes that can be chosen, the best first, which is the order of the Tab key.
  offer({ threshold, picks }, choice) {
    Object.assign(this, { threshold, picks });
    const focused = document.activeElement?.dataset?.query, own = this.svg.contains(document.activeElement);
    const elements = shownQueries(this.side, threshold).map((query) => {
      const [x0, y0, x1, y1] = lastBox(this.side, query);
      const chosen = choice?.kind === "query" && choice.index === query;
      return svg("rect", {
        class: "box", x: x0, y: y0, width: Math.max(x1 - x0, 0), height: Math.max(y1 - y0, 0), role: "button", tabindex: 0,
        stroke: classColour(this.side, query), "data-query": query, "aria-pressed": String(chosen),
        "aria-label": `query ${query}, ${nameOf(this.side, query)}, score ${lastScore(this.side, query).toFixed(2)}`,
      });
    });
    this.boxes.replaceChildren(...elements);
    if (own) elements.find((element) => element.dataset.query === focused)?.focus({ preventScroll: true });
    this.svg.setAttribute("aria-label", `${this.picture.name}, ${elements.length} boxes of ${this.side.title}`);
  }

  // Draw a scene, or null for none; moves there from the last one if both have the same points.
  show(scene, moving) {
    this.stop();
    const from = this.drawn;
    if (moving && from && scene && from.points.length === scene.points.length) {
      this.stop = move((share) => this.draw(between(from, scene, share)));
    } else this.draw(scene);
  }

  draw(scene) {
    this.drawn = scene;
    this.view = scene ? scene.view : this.whole();
    this.svg.setAttribute("viewBox", this.view.map((v) => v.toFixed(2)).join(" "));
    this.svg.classList.toggle("chosen", Boolean(scene));
    for (const part of [this.frame, this.cross]) part.toggleAttribute("hidden", !scene);
    const scale = this.scale;
    this.svg.style.setProperty("--scale", scale);
    this.trail.replaceChildren(...(scene ? trailOf(scene) : []));
    if (!scene) {
      this.points.replaceChildren();
      return;
    }
    const [x0, y0, x1, y1] = scene.box;
    for (const rect of this.frame.children) {
      furnish(rect, { x: x0, y: y0, width: Math.max(x1 - x0, 0), height: Math.max(y1 - y0, 0) }, []);
    }
    this.cross.setAttribute("transform", `translate(${scene.reference.join(" ")}) scale(${scale})`);
    const seen = scene.points.filter((point) => point.size > 0).sort((a, b) => a.share - b.share);
    const kept = new Map([...this.points.children].map((path) => [Number(path.dataset.point), path]));
    this.points.replaceChildren(...seen.map((point) => furnish(kept.get(point.id) ?? svg("path", { class: "point" }), {
      d: markOf(point.level), "data-point": point.id, fill: colourOf(this.palette, point.share),
      transform: `translate(${point.x} ${point.y}) scale(${point.size * scale})`,
    }, [])));
  }

  // The name of a box under the pointer or with the focus.
  name(query) {
    const shown = query !== null && query >= 0;
    this.tag.toggleAttribute("hidden", !shown);
    for (const box of this.boxes.children) box.classList.toggle("meant", shown && Number(box.dataset.query) === query);
    if (!shown) return;
    const [x0, y0] = lastBox(this.side, query), [rect, text] = this.tag.children;
    text.textContent = `${nameOf(this.side, query)} ${lastScore(this.side, query).toFixed(2)}`;
    this.tag.setAttribute("transform", `translate(${Math.max(x0, this.view[0])} ${Math.max(y0, this.view[1] + 22 * this.scale)}) scale(${this.scale})`);
    furnish(text, { x: 6, y: -7 }, []);
    furnish(rect, { x: 0, y: -21, width: text.getComputedTextLength() + 12, height: 20 }, []);
  }

  // Words beside a point; null takes them away.
  point(point, lines) {
    this.tip.hidden = !point;
    this.ray.toggleAttribute("hidden", !point);
    for (const path of this.points.children) path.classList.toggle("meant", Boolean(point) && Number(path.dataset.point) === point.id);
    if (!point || !this.drawn) return;
    const [x, y] = this.drawn.reference;
    furnish(this.ray, { x1: x, y1: y, x2: point.x, y2: point.y }, []);
    this.tip.replaceChildren(...lines.map((line) => html("span", {}, line)));
    const { clientWidth: width, clientHeight: height } = this.svg, { offsetWidth, offsetHeight } = this.tip;
    const left = (point.x - this.view[0]) / this.scale, top = (point.y - this.view[1]) / this.scale;
    this.tip.style.left = `${Math.max(4, left + 14 + offsetWidth < width ? left + 14 : left - 14 - offsetWidth)}px`;
    this.tip.style.top = `${Math.min(Math.max(4, top - offsetHeight / 2), Math.max(4, height - offsetHeight - 4))}px`;
  }
}

// What a stage draws of a choice in a layer.
function sceneOf(side, choice, layer, { head, level, weakest, zoomed }, whole) {
  const strongest = strongestOf(side, choice);
  const points = pointsOf(side, choice, layer).map((point) => {
    const share = point.weight / strongest;
    const seen = (head < 0 || point.head === head) && (level < 0 || point.level === level) && share >= weakest;
    return { ...point, share, size: seen ? radiusOf(share) : 0 };
  });
  const box = boxOf(side, choice, layer), reference = referenceOf(side, choice, layer);
  const earlier = choice.kind === "query" ? Array.from({ length: layer }, (_, i) => referenceOf(side, choice, i)) : [];
  const before = choice.kind === "query" && layer > 0 ? boxOf(side, choice, layer - 1) : null;
  return { points, box, reference, earlier, before, view: zoomed ? around(points, box, whole) : whole };
}

// The part of a view that has a box and the points of much weight, in the view's proportions.
function around(points, box, whole) {
  const strong = points.filter((point) => point.share >= 0.15);
  const xs = [box[0], box[2], ...strong.map((point) => point.x)], ys = [box[1], box[3], ...strong.map((point) => point.y)];
  const inside = (values, start, length) => values.map((value) => Math.min(Math.max(value, start), start + length));
  const [left, right] = [Math.min, Math.max].map((of) => of(...inside(xs, whole[0], whole[2])));
  const [top, bottom] = [Math.min, Math.max].map((of) => of(...inside(ys, whole[1], whole[3])));
  const share = Math.min(Math.max((right - left) / whole[2], (bottom - top) / whole[3], 0.08) * 1.2, 1);
  const width = share * whole[2], height = share * whole[3];
  const from = (middle, length, start, most) => Math.min(Math.max(middle - length / 2, start), start + most - length);
  return [
    from((left + right) / 2, width, whole[0], whole[2]), from((top + bottom) / 2, height, whole[1], whole[3]), width, height,
  ];
}

function trailOf({ before, earlier, reference }) {
  const places = [...earlier, reference].map(([x, y]) => `${x},${y}`).join(" ");
  const rect = before && svg("rect", { class: "before", x: before[0], y: before[1], width: before[2] - before[0], height: before[3] - before[1] });
  return [rect, earlier.length ? svg("polyline", { class: "path", points: places }) : null].filter(Boolean);
}

function between(from, to, share) {
  if (share === 1) return to;
  return {
    ...to,
    box: blendAll(from.box, to.box, share),
    reference: blendAll(from.reference, to.reference, share),
    view: blendAll(from.view, to.view, share),
    points: to.points.map((point, i) => {
      const old = from.points[i];
      return {
        ...point, x: blend(old.x, point.x, share), y: blend(old.y, point.y, share),
        share: blend(old.share, point.share, share), size: blend(old.size, point.size, share),
      };
    }),
  };
}
